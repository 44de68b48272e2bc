//! What a running tenant is given by its host: the account for ssh, and names of tenants that it may reach.
//!
//! The shim gives it after every boot of the tenant, whoever started it; a `fief` that waits for a tenant gives it too, so
//! that everything is there when it returns. Giving twice is giving once.

use std::time::{Duration, Instant};

use fief_agent_proto::{Connection, Error, Login, MAX_NAMES, Provide};

use crate::agent;
use crate::network;
use crate::spec::Spec;
use crate::store::Tenant;
use crate::terminal::say;

/// How long a tenant may take to take a name while somebody waits for the change of a grant.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the tenant is to have.
fn request(tenant: &Tenant, spec: &Spec) -> Provide {
    let login = spec.has_account().then(|| Login {
        name: tenant.name.login(),
        keys: spec.ssh_keys.clone(),
    });
    // Grants that cannot be read are told by those who change them.
    let granted = network::granted_to(tenant).unwrap_or_default();
    let names = granted
        .into_iter()
        .map(|(address, name)| (address, format!("{name}.fief")))
        .take(MAX_NAMES)
        .collect();
    Provide { names, login }
}

/// The same; none if there is nothing to give to a tenant that has just booted.
fn first(tenant: &Tenant) -> Option<Provide> {
    // A spec that cannot be read is told by whoever needs it.
    let request = request(tenant, &tenant.spec().ok()?);
    (request != Provide::default()).then_some(request)
}

/// Gives a tenant what its spec says.
///
/// # Errors
/// The agent's, in the tenant's own words, or the connection's.
pub fn give(connection: &Connection, tenant: &Tenant) -> Result<(), Error> {
    first(tenant).map_or(Ok(()), |request| connection.provide(&request))
}

/// The same for a person who waits: a tenant without an account is better than none.
pub fn give_or_warn(connection: &Connection, tenant: &Tenant) {
    if let Err(error) = give(connection, tenant) {
        let why = crate::failure::chain(&error);
        say(&format!(
            "fief: warning: ssh to tenant '{0}' and names of tenants in it may not work: {why}; `fief exec {0}` does",
            tenant.name
        ));
    }
}

/// Gives it as soon as the tenant answers, on a thread of its own. What the agent could not do, it says on the tenant's
/// console.
pub fn give_beside(tenant: &Tenant) {
    let tenant = tenant.clone();
    // Without a thread it comes with the next start.
    let _ = std::thread::Builder::new()
        .name("provide".to_owned())
        .spawn(move || {
            if first(&tenant).is_some()
                && let Ok(connection) = agent::connect(&tenant, &|| true)
            {
                let _ = give(&connection, &tenant);
            }
        });
}

/// Tells a tenant that runs whom it may reach and who may log in now, after a grant or a key was given or taken. One that
/// boots or does not answer hears it when it has booted.
///
/// # Errors
/// The agent's, or it does not answer.
pub fn renew(tenant: &Tenant) -> Result<(), Error> {
    let Ok(spec) = tenant.spec() else {
        return Ok(());
    };
    if !tenant.runs() {
        return Ok(());
    }
    let deadline = Instant::now() + PATIENCE;
    let connection = agent::connect(tenant, &|| Instant::now() < deadline)?;
    connection.provide(&request(tenant, &spec))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::spec;

    #[test]
    fn a_tenant_with_keys_gets_an_account_of_its_name_and_others_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let tenant = Tenant::open(directory.path(), "a.b".parse().unwrap());
        assert_eq!(request(&tenant, &spec()), Provide::default());
        let spec = Spec {
            ssh_keys: vec!["key".to_owned()],
            ..spec()
        };
        let login = request(&tenant, &spec).login.unwrap();
        assert_eq!(login.name, "a-b");
        assert_eq!(login.keys, spec.ssh_keys);
        // Keys that are taken away are taken from the tenant, too.
        let spec = Spec {
            ssh_keys: Vec::new(),
            keyless_account: true,
            ..spec
        };
        let login = request(&tenant, &spec).login.unwrap();
        assert_eq!((login.name.as_str(), login.keys.len()), ("a-b", 0));
    }
}
