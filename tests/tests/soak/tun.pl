# Makes a tunnel (linux/if_tun.h), pings an address behind it, and reads the packet that the kernel sends there.
use strict;
use warnings;
alarm 300;
my ($TUNSETIFF, $IFF_TUN, $IFF_NO_PI) = (0x400454ca, 1, 0x1000);
open(my $tunnel, '+<', '/dev/net/tun') or die "/dev/net/tun: $!";
ioctl($tunnel, $TUNSETIFF, pack('a16 s x22', 'soak0', $IFF_TUN | $IFF_NO_PI)) or die "TUNSETIFF: $!";
system('ip address add 10.9.9.1/24 dev soak0 && ip link set soak0 up') == 0 or die 'ip failed';
my $ping = fork() // die "fork: $!";
if ($ping == 0) {
    open(STDOUT, '>', '/dev/null');
    exec('ping', '-c', '1', '-W', '5', '10.9.9.2');
}
# IPv6 says hello on the new link too: the first IPv4 packet counts.
my $packet = '';
while (unpack('C', $packet || "\0") >> 4 != 4) {
    sysread($tunnel, $packet, 2048) or die "reading the tunnel: $!";
}
# Protocol is byte 9, the destination bytes 16 to 19 (RFC 791).
my ($protocol, @to) = unpack('x9 C x6 C4', $packet);
print $protocol == 1 ? 'an ICMP packet' : "protocol $protocol", ' to ', join('.', @to), "\n";
kill('KILL', $ping);
waitpid($ping, 0);
