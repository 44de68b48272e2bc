//! What the kernel command line asks for.

use fief_agent_proto::InitMode;

/// Settings of one boot. Unknown `fief.` words are reported and otherwise ignored: an older agent still boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// `fief.root=`: serial number of the drive with the image; none: stay in the initramfs.
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
    /// Words that made no sense, for a message.
    pub bad: Vec<String>,
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
    /// Reads a kernel command line (`/proc/cmdline`).
    pub fn parse(line: &str) -> Settings {
        let mut settings = Settings {
            root: None,
            root_type: None,
            disk: None,
            modules_drive: None,
            init: InitMode::Agent,
            hostname: None,
            transport: Transport::Vsock,
            user: None,
            modules: Vec::new(),
            bad: Vec::new(),
        };
        for word in line.split_whitespace() {
            let Some((name, value)) = word
                .strip_prefix("fief.")
                .and_then(|word| word.split_once('='))
            else {
                continue;
            };
            if !settings.set(name, value) {
                settings.bad.push(word.to_owned());
            }
        }
        settings
    }

    fn set(&mut self, name: &str, value: &str) -> bool {
        match (name, value) {
            (_, "") => return false,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_read_and_other_words_are_left_alone() {
        let line = "console=ttyS0 fief.root=root0 fief.rootfstype=ext4 fief.disk=disk0 fief.init=image quiet \
                    fief.hostname=alice fief.agent=serial:port.7 fief.user=ann:staff fief.modules=a,b fief.modulesdrive=m root=/dev/vda";
        let settings = Settings::parse(line);
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
        let settings = Settings::parse(line);
        assert_eq!(settings.bad.len(), 6);
        assert_eq!(
            Settings {
                bad: Vec::new(),
                ..settings
            },
            Settings::parse("")
        );
    }

    #[test]
    fn serial_without_a_name_means_the_default_port() {
        assert_eq!(
            Settings::parse("fief.agent=serial").transport,
            Transport::Serial("fief.agent".into())
        );
    }
}
