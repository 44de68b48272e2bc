# A repository of two packages in the world: a program, and the libraries that it depends on. Both are the emulated
# host's own iperf3, packed anew; no archive is asked.
set -e
rm -rf /tmp/repository /tmp/packing
mkdir -p /tmp/repository
# pack NAME DEPENDS FILE...
pack() {
    name=$1 depends=$2 root=/tmp/packing/$1
    shift 2
    mkdir -p "$root/DEBIAN"
    printf '%s\n' "Package: $name" 'Version: 1.0' 'Architecture: amd64' 'Maintainer: fief' \
        "Depends: $depends" 'Description: a test' > "$root/DEBIAN/control"
    for file in "$@"; do
        mkdir -p "$root/usr${file%/*}"
        cp -L "$file" "$root/usr$file"
    done
    dpkg-deb --root-owner-group --build "$root" "/tmp/repository/$name.deb" > /dev/null
    {
        dpkg-deb --field "/tmp/repository/$name.deb"
        echo "Filename: ./$name.deb"
        echo "Size: $(stat -c %s "/tmp/repository/$name.deb")"
        echo "SHA256: $(sha256sum "/tmp/repository/$name.deb" | cut -d ' ' -f 1)"
        echo
    } >> /tmp/repository/Packages
}
libraries=$(ldd /usr/bin/iperf3 | sed -n -E 's#.* => (/lib/[^ ]*(iperf|sctp)[^ ]*) .*#\1#p')
cp /usr/bin/iperf3 /bin/fief-iperf3 2> /dev/null || true
pack fief-iperf3-libraries libc6 $libraries
pack fief-iperf3 fief-iperf3-libraries /bin/fief-iperf3
busybox httpd -p "$1:8080" -h /tmp/repository
