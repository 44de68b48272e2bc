//! `fief images`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use fief_images::{Kind, Listed, rootfs};
use serde::Serialize;

use super::{Context, Error, Result, prepare};
use crate::progress::Shown;
use crate::spec::{Bytes, Spec, TenantName};
use crate::store::{Store, StoreError};
use crate::table::table;
use crate::terminal::output;

/// Flags of `fief images`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List images and kernels (as `fief images` alone does)
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a directory, a tar (also .gz, .xz, .zst) or an erofs or ext4 image file as an image
    Import {
        /// Name of the image; one of that name is replaced
        name: String,
        /// Where it is
        path: PathBuf,
    },
    /// Remove images
    Rm {
        /// Also images that tenants are made from; these keep their files
        #[arg(long, short = 'f')]
        force: bool,
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

/// One image or kernel, as listed.
#[derive(Debug, Serialize)]
struct Entry {
    kind: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact: Option<String>,
    size_bytes: u64,
    properties: std::collections::BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
}

pub fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    match &args.action {
        None => list(context, args.json)?,
        Some(Action::List { json }) => list(context, *json || args.json)?,
        Some(Action::Import { name, path }) => {
            let image = prepare::import(&context.images()?, name, path, &Shown::default())?;
            output(&format!(
                "{name}: {} {}, {}\n",
                image.format.name(),
                Bytes(image.size),
                image.artifact.short()
            ))?;
        }
        Some(Action::Rm { names, force }) => remove(context, names, *force)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(context: &Context, json: bool) -> Result<()> {
    let entries = context.images()?.list()?.into_iter().map(entry);
    let text = if json {
        serde_json::to_string_pretty(&entries.collect::<Vec<_>>())? + "\n"
    } else {
        table(
            &["KIND", "NAME", "SIZE", "ARTIFACT", "DETAILS"],
            entries.map(row),
        )
    };
    Ok(output(&text)?)
}

fn entry(listed: Listed) -> Entry {
    Entry {
        kind: listed.kind.to_string(),
        name: listed.name,
        artifact: listed.artifact.map(|id| id.to_string()),
        size_bytes: listed.size,
        properties: listed.properties,
        problem: listed.problem,
    }
}

fn row(entry: Entry) -> Vec<String> {
    let details = entry.problem.unwrap_or_else(|| {
        entry
            .properties
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect::<Vec<_>>()
            .join(" ")
    });
    let artifact = entry.artifact.unwrap_or_default();
    let short = artifact.get(..12).unwrap_or_default().to_owned();
    vec![
        entry.kind,
        entry.name,
        Bytes(entry.size_bytes).to_string(),
        short,
        details,
    ]
}

fn remove(context: &Context, names: &[String], force: bool) -> Result<()> {
    let images = context.images()?;
    let tenants = specs(&context.store()?)?;
    let kept: Vec<_> = tenants
        .iter()
        .filter_map(|(_, spec)| spec.artifact.clone())
        .collect();
    for name in names {
        let used_by = tenants.iter().find(|(_, spec)| spec.image == *name);
        if let (Some((tenant, _)), false) = (used_by, force) {
            return Err(Error::new(format!(
                "the image '{name}' is used by tenant '{tenant}'; remove that first (`fief rm {tenant}`), or give -f"
            )));
        }
        let known = images
            .list()?
            .into_iter()
            .any(|listed| listed.kind == Kind::Rootfs && listed.name == *name);
        if !known {
            let own = if rootfs::recipes().any(|recipe| recipe == name) {
                " here yet"
            } else {
                ""
            };
            return Err(Error::new(format!(
                "there is no image '{name}'{own}; `fief images` lists those there are"
            )));
        }
        images.remove(Kind::Rootfs, name, &kept)?;
        output(&format!("{name}\n"))?;
    }
    Ok(())
}

/// What every tenant asks for. One that cannot be read is an error: the files that it needs would not be known.
fn specs(store: &Store) -> Result<Vec<(TenantName, Spec)>> {
    let mut specs = Vec::new();
    for tenant in store.tenants()? {
        match tenant.spec() {
            Ok(spec) => specs.push((tenant.name, spec)),
            // It was removed since.
            Err(StoreError::NoTenant(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(specs)
}
