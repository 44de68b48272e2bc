//! What the kernel command line asks for, or the arguments in a container.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fief_agent_proto::InitMode;

/// What the agent is process 1 of, or beside process 1 of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Machine,
    /// Whoever made it has mounted everything and given a listening socket; the kernel is the host's.
    Container,
}

/// Settings of one boot. Unknown `fief.` words are reported and otherwise ignored: an older agent still boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub place: Place,
    /// `fief.root=`: serial number, or device, of the drive with the image; none: stay in the initramfs.
    pub root: Option<String>,
    /// `fief.rootfstype=`: `erofs`, `ext4`, or `auto` (None): the superblock tells.
    pub root_type: Option<String>,
    /// `fief.disk=`: serial number of the writable drive; none: changes live in memory.
    pub disk: Option<String>,
    /// `fief.init=agent|image`.
    pub init: InitMode,
    /// `fief.hostname=`.
    pub hostname: Option<String>,
    /// `fief.agent=vsock|serial[:port]`.
    pub transport: Transport,
    /// `fief.user=`: whom commands run as unless they say.
    pub user: Option<String>,
    /// `fief.modulesdrive=`: serial number of the drive with the kernel's modules, for `/lib/modules`.
    pub modules_drive: Option<String>,
    /// `fief.modules=a,b`: loaded after those of the initramfs's list.
    pub modules: Vec<String>,
    /// `fief.mac=` and the words that go with it; none: the tenant has no network but its loopback.
    pub network: Option<Network>,
    /// Words that made no sense, for a message.
    pub bad: Vec<String>,
}

/// The tenant's one interface.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Network {
    /// `fief.mac=`: the interface's Ethernet address, by which it is found.
    pub mac: [u8; 6],
    /// `fief.address=`, `fief.address6=`: with the length of their prefix in bits (as written after `/`, else all).
    pub addresses: Vec<(IpAddr, u8)>,
    /// `fief.gateway=`, `fief.gateway6=`: on the link, whatever the prefixes say.
    pub gateways: Vec<IpAddr>,
    /// `fief.dns=a,b`.
    pub dns: Vec<IpAddr>,
    /// `fief.mtu=`, in bytes; else the device's own.
    pub mtu: Option<u32>,
}

/// Where clients reach the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    Vsock,
    /// Name of a virtio-serial port, or of a device in `/dev`.
    Serial(String),
}

/// The virtio-serial port used unless `fief.agent=serial:NAME` names another.
const DEFAULT_PORT: &str = "fief.agent";

impl Settings {
    /// Reads a machine's kernel command line (`/proc/cmdline`), or a container's words with a space between.
    pub fn parse(line: &str, place: Place) -> Settings {
        let mut settings = Settings {
            place,
            root: None,
            root_type: None,
            disk: None,
            modules_drive: None,
            init: InitMode::Agent,
            hostname: None,
            transport: Transport::Vsock,
            user: None,
            modules: Vec::new(),
            network: None,
            bad: Vec::new(),
        };
        let mut network = Network::default();
        let mut has_mac = false;
        for word in line.split_whitespace() {
            let Some((name, value)) = word
                .strip_prefix("fief.")
                .and_then(|word| word.split_once('='))
            else {
                continue;
            };
            if let Some(known) = network.set(name, value) {
                has_mac |= known && name == "mac";
                if !known {
                    settings.bad.push(word.to_owned());
                }
            } else if !settings.set(name, value) {
                settings.bad.push(word.to_owned());
            }
        }
        if has_mac {
            settings.network = Some(network);
        } else if network != Network::default() {
            settings
                .bad
                .push("network settings without fief.mac".to_owned());
        }
        settings
    }

    fn set(&mut self, name: &str, value: &str) -> bool {
        match (name, value) {
            (_, "") => return false,
            // A container has its root, no drives and no modules, and is reached in one way.
            ("root" | "rootfstype" | "disk" | "modulesdrive" | "modules" | "agent", _)
                if self.place == Place::Container =>
            {
                return false;
            }
            ("root", _) => self.root = Some(value.to_owned()),
            ("rootfstype", "auto") => self.root_type = None,
            ("rootfstype", "erofs" | "ext4") => self.root_type = Some(value.to_owned()),
            ("disk", _) => self.disk = Some(value.to_owned()),
            ("modulesdrive", _) => self.modules_drive = Some(value.to_owned()),
            ("init", "agent") => self.init = InitMode::Agent,
            ("init", "image") => self.init = InitMode::Image,
            ("hostname", _) => self.hostname = Some(value.to_owned()),
            ("agent", "vsock") => self.transport = Transport::Vsock,
            ("agent", "serial") => self.transport = Transport::Serial(DEFAULT_PORT.to_owned()),
            ("agent", _) => match value.strip_prefix("serial:") {
                Some(port) if !port.is_empty() && !port.contains('/') => {
                    self.transport = Transport::Serial(port.to_owned());
                }
                _ => return false,
            },
            ("user", _) => self.user = Some(value.to_owned()),
            ("modules", _) => self.modules = value.split(',').map(str::to_owned).collect(),
            _ => return false,
        }
        true
    }
}

impl Network {
    /// Takes a word of the network; whether it made sense, or none if it is not about the network.
    fn set(&mut self, name: &str, value: &str) -> Option<bool> {
        let took = match name {
            "mac" => parse_mac(value).map(|mac| self.mac = mac),
            "address" => {
                with_prefix::<Ipv4Addr>(value, 32).map(|address| self.addresses.push(address))
            }
            "address6" => {
                with_prefix::<Ipv6Addr>(value, 128).map(|address| self.addresses.push(address))
            }
            "gateway" => parse::<Ipv4Addr>(value).map(|gateway| self.gateways.push(gateway)),
            "gateway6" => parse::<Ipv6Addr>(value).map(|gateway| self.gateways.push(gateway)),
            "dns" => {
                let all: Option<Vec<_>> = value.split(',').map(parse::<IpAddr>).collect();
                all.map(|all| self.dns = all)
            }
            "mtu" => value.parse().ok().map(|mtu| self.mtu = Some(mtu)),
            _ => return None,
        };
        Some(took.is_some())
    }
}

fn parse<T: std::str::FromStr + Into<IpAddr>>(text: &str) -> Option<IpAddr> {
    text.parse::<T>().ok().map(Into::into)
}

fn with_prefix<T: std::str::FromStr + Into<IpAddr>>(text: &str, most: u8) -> Option<(IpAddr, u8)> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, prefix.parse().ok()?),
        None => (text, most),
    };
    (prefix <= most).then_some((parse::<T>(address)?, prefix))
}

fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| u8::from_str_radix(part, 16).ok())
        .collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Settings {
        Settings::parse(line, Place::Machine)
    }

    #[test]
    fn the_network_is_read_as_a_whole() {
        let line = "fief.mac=02:0a:63:00:00:02 fief.address=10.99.0.2/32 fief.gateway=10.99.0.1 fief.mtu=1400 \
                    fief.address6=fd00::2/128 fief.gateway6=fd00::1 fief.dns=192.0.2.1,2001:db8::1 fief.hostname=a";
        let settings = parse(line);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let network = Network {
            mac: [2, 10, 99, 0, 0, 2],
            addresses: vec![(ip("10.99.0.2"), 32), (ip("fd00::2"), 128)],
            gateways: vec![ip("10.99.0.1"), ip("fd00::1")],
            dns: vec![ip("192.0.2.1"), ip("2001:db8::1")],
            mtu: Some(1400),
        };
        assert_eq!(settings.network, Some(network));
        assert!(settings.bad.is_empty(), "{:?}", settings.bad);
        let bare = parse("fief.mac=02:0a:63:00:00:02 fief.address=10.99.0.2").network;
        assert_eq!(bare.unwrap().addresses, [(ip("10.99.0.2"), 32)]);
    }

    #[test]
    fn a_network_that_makes_no_sense_is_named_word_by_word() {
        for word in [
            "fief.mac=02:0a:63:00:00",
            "fief.mac=02:0a:63:00:00:0g",
            "fief.address=10.99.0.2/33",
            "fief.address=fd00::2",
            "fief.address6=10.99.0.2",
            "fief.gateway=10.99.0",
            "fief.dns=192.0.2.1,",
            "fief.mtu=-1",
        ] {
            assert_eq!(parse(word).bad, [word]);
        }
        let settings = parse("fief.address=10.99.0.2/32");
        assert_eq!(settings.network, None);
        assert!(settings.bad[0].contains("fief.mac"));
    }

    #[test]
    fn every_setting_is_read_and_other_words_are_left_alone() {
        let line = "console=ttyS0 fief.root=root0 fief.rootfstype=ext4 fief.disk=disk0 fief.init=image quiet \
                    fief.hostname=alice fief.agent=serial:port.7 fief.user=ann:staff fief.modules=a,b fief.modulesdrive=m root=/dev/vda";
        let settings = parse(line);
        assert_eq!(settings.root.as_deref(), Some("root0"));
        assert_eq!(settings.root_type.as_deref(), Some("ext4"));
        assert_eq!(settings.disk.as_deref(), Some("disk0"));
        assert_eq!(settings.init, InitMode::Image);
        assert_eq!(settings.hostname.as_deref(), Some("alice"));
        assert_eq!(settings.transport, Transport::Serial("port.7".into()));
        assert_eq!(settings.user.as_deref(), Some("ann:staff"));
        assert_eq!(settings.modules, ["a", "b"]);
        assert_eq!(settings.modules_drive.as_deref(), Some("m"));
        assert!(settings.bad.is_empty());
    }

    #[test]
    fn words_that_make_no_sense_are_named_and_change_nothing() {
        let line = "fief.root= fief.init=systemd fief.agent=serial:../x fief.agent=tcp fief.rootfstype=xfs fief.new=1";
        let settings = parse(line);
        assert_eq!(settings.bad.len(), 6);
        assert_eq!(
            Settings {
                bad: Vec::new(),
                ..settings
            },
            parse("")
        );
    }

    #[test]
    fn serial_without_a_name_means_the_default_port() {
        assert_eq!(
            parse("fief.agent=serial").transport,
            Transport::Serial("fief.agent".into())
        );
    }

    #[test]
    fn a_container_takes_the_same_words_but_those_about_what_a_machine_has() {
        let shared = "fief.init=image fief.hostname=a fief.user=ann fief.mac=02:0a:63:00:00:02 fief.mtu=1400";
        let machines = "fief.root=r fief.rootfstype=erofs fief.disk=d fief.modulesdrive=m fief.modules=a fief.agent=vsock";
        let settings = Settings::parse(&format!("{shared} {machines}"), Place::Container);
        assert_eq!(
            settings.bad,
            machines.split_whitespace().collect::<Vec<_>>()
        );
        let control = Settings {
            place: Place::Container,
            ..parse(shared)
        };
        assert_eq!(
            Settings {
                bad: Vec::new(),
                ..settings
            },
            control
        );
        assert!(parse(machines).bad.is_empty());
    }
}
