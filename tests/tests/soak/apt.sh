# A package made here, in a repository of files: no network is needed.
repository=/srv/repository
package=$(mktemp -d)
mkdir -p $package/DEBIAN $package/usr/bin $repository
printf '%s\n' 'Package: fief-soak' 'Version: 1.0' 'Architecture: all' 'Maintainer: fief' 'Description: a test' \
    > $package/DEBIAN/control
printf '#!/bin/sh\necho it is installed\n' > $package/usr/bin/fief-soak
chmod 755 $package $package/usr/bin/fief-soak
cd $repository
dpkg-deb --root-owner-group --build $package fief-soak.deb
{
    dpkg-deb --field fief-soak.deb
    echo "Filename: ./fief-soak.deb"
    echo "Size: $(stat -c %s fief-soak.deb)"
    echo "SHA256: $(sha256sum fief-soak.deb | cut -d ' ' -f 1)"
} > Packages
echo "deb [trusted=yes] file:$repository ./" > /etc/apt/soak.list
apt() { apt-get -q -y -o Dir::Etc::sourcelist=/etc/apt/soak.list -o Dir::Etc::sourceparts=- "$@"; }
apt update
apt install fief-soak
said=$(fief-soak)
apt purge fief-soak
echo "$said"
test ! -e /usr/bin/fief-soak && echo it is removed
