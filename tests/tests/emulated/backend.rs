//! What a tenant is to be whatever keeps it apart is tested with both backends, from one source.

use std::fmt;

use super::Tenant;

/// What keeps a tenant apart. Shown, it is the option of `fief create` and `fief run` that asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Machine,
    Container,
}

impl Backend {
    /// What is expected where the two differ on purpose (docs/containers.md).
    pub fn either<T>(self, machine: T, container: T) -> T {
        match self {
            Backend::Machine => machine,
            Backend::Container => container,
        }
    }

    /// As [`Tenant::start`]. A kernel among the options is for machines, and nothing to containers.
    #[track_caller]
    pub fn start(self, name: &str, options: &str) -> Tenant {
        Tenant::start(name, &format!("{self} {options}"))
    }

    /// As [`Tenant::create`].
    #[track_caller]
    pub fn create(self, name: &str, options: &str) -> Tenant {
        Tenant::create(name, &format!("{self} {options}"))
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.either("--isolation vm", "--isolation container"))
    }
}

/// Makes two tests, `name::machine` and `name::container`, of a function that is given the [`Backend`]. Its tenants have the
/// same names in both, so one at a time runs.
macro_rules! both {
    ($name:ident) => {
        mod $name {
            use crate::backend::Backend;

            static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

            #[test]
            fn machine() {
                let _alone = ALONE.lock().unwrap_or_else(|lock| lock.into_inner());
                super::$name(Backend::Machine);
            }

            #[test]
            fn container() {
                let _alone = ALONE.lock().unwrap_or_else(|lock| lock.into_inner());
                super::$name(Backend::Container);
            }
        }
    };
}
