//! What a running tenant is given by its host: the account for ssh.
//!
//! The shim gives it after every boot of the tenant, whoever started it; a `fief` that waits for a tenant gives it too, so
//! that everything is there when it returns. Giving twice is giving once.

use fief_agent_proto::{Connection, Error, Login, Provide};

use crate::agent;
use crate::spec::{Spec, TenantName};
use crate::store::Tenant;
use crate::terminal::say;

/// What the tenant is to have; none if there is nothing to give.
fn request(name: &TenantName, spec: &Spec) -> Option<Provide> {
    let login = (!spec.ssh_keys.is_empty()).then(|| Login {
        name: name.login(),
        keys: spec.ssh_keys.clone(),
    });
    let request = Provide {
        names: Vec::new(),
        login,
    };
    (request != Provide::default()).then_some(request)
}

/// Gives a tenant what its spec says.
///
/// # Errors
/// The agent's, in the tenant's own words, or the connection's.
pub fn give(connection: &Connection, tenant: &Tenant) -> Result<(), Error> {
    // A spec that cannot be read is told by whoever needs it.
    let request = tenant
        .spec()
        .ok()
        .and_then(|spec| request(&tenant.name, &spec));
    request.map_or(Ok(()), |request| connection.provide(&request))
}

/// The same for a person who waits: a tenant without an account is better than none.
pub fn give_or_warn(connection: &Connection, tenant: &Tenant) {
    if let Err(error) = give(connection, tenant) {
        let why = crate::failure::chain(&error);
        say(&format!(
            "fief: warning: ssh to tenant '{0}' will not work: {why}; `fief exec {0}` and `fief shell {0}` do",
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
            let nothing = tenant
                .spec()
                .map(|spec| request(&tenant.name, &spec).is_none());
            if !nothing.unwrap_or(true)
                && let Ok(connection) = agent::connect(&tenant, &|| true)
            {
                let _ = give(&connection, &tenant);
            }
        });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::tests::spec;

    #[test]
    fn a_tenant_with_keys_gets_an_account_of_its_name_and_others_nothing() {
        let name: TenantName = "a.b".parse().unwrap();
        assert_eq!(request(&name, &spec()), None);
        let spec = Spec {
            ssh_keys: vec!["key".to_owned()],
            ..spec()
        };
        let login = request(&name, &spec).unwrap().login.unwrap();
        assert_eq!((login.name.as_str(), login.keys), ("a-b", spec.ssh_keys));
    }
}
