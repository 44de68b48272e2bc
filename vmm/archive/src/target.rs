//! Where a copy goes, by docker's rules (docker-container-cp(1)).

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::{Error, failed};

/// What of a source is copied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its own name.
    pub base: OsString,
    /// Not the directory itself but what is in it: the source ended in `/.`.
    pub contents: bool,
}

impl Source {
    /// What `path` means; `base` is for one without a name of its own, such as `/` or `..`.
    pub fn of(path: &Path, base: impl FnOnce() -> Option<OsString>) -> Self {
        let bytes = path.as_os_str().as_bytes();
        let contents = bytes == b"." || bytes.ends_with(b"/.");
        let base = path.file_name().map(ToOwned::to_owned).or_else(base);
        Self {
            base: base.unwrap_or_else(|| OsString::from("root")),
            contents,
        }
    }
}

/// Where to copy to, as somebody wrote it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub path: PathBuf,
    pub source: Source,
}

/// Where the copy is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// Under this name in an existing directory.
    Named { parent: PathBuf, name: OsString },
    /// Its contents in this existing directory.
    Into(PathBuf),
}

impl Target {
    pub(crate) fn place(&self, source_is_directory: bool) -> Result<Place, Error> {
        let ends_as_directory = {
            let bytes = self.path.as_os_str().as_bytes();
            bytes.ends_with(b"/") || bytes.ends_with(b"/.") || bytes == b"."
        };
        match fs::metadata(&self.path) {
            Ok(data) if data.is_dir() => {
                if source_is_directory && self.source.contents {
                    return Ok(Place::Into(self.path.clone()));
                }
                Ok(Place::Named {
                    parent: self.path.clone(),
                    name: self.source.base.clone(),
                })
            }
            Ok(data) if !data.is_file() => Err(Error::Special(self.path.clone())),
            Ok(_) if source_is_directory => Err(Error::NotDirectory(self.path.clone())),
            Ok(_) => {
                // What a link leads to is replaced, not the link.
                let path = fs::canonicalize(&self.path).map_err(failed("find", &self.path))?;
                named(&path)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if ends_as_directory && !source_is_directory {
                    return Err(Error::NoDirectory(self.path.clone()));
                }
                named(&self.path)
            }
            Err(error) => Err(failed("find", &self.path)(error)),
        }
    }
}

fn named(path: &Path) -> Result<Place, Error> {
    let nowhere = || Error::NoDirectory(path.to_owned());
    let name = path.file_name().ok_or_else(nowhere)?.to_owned();
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    if parent.is_dir() {
        Ok(Place::Named { parent, name })
    } else {
        Err(Error::NoDirectory(parent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str) -> Source {
        Source::of(Path::new(path), || Some("fallback".into()))
    }

    #[test]
    fn a_source_has_its_name_or_means_what_is_in_it() {
        for (path, base, contents) in [
            ("a/b", "b", false),
            ("a/b/", "b", false),
            ("a/b/.", "b", true),
            (".", "fallback", true),
            ("/", "fallback", false),
            ("..", "fallback", false),
        ] {
            let source = source(path);
            assert_eq!(
                (source.base.to_str().unwrap(), source.contents),
                (base, contents),
                "{path}"
            );
        }
    }

    #[test]
    fn a_copy_goes_where_dockers_rules_say() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir(root.join("dir")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        std::os::unix::fs::symlink("file", root.join("link")).unwrap();
        let place = |path: &str, from: &str, is_directory| {
            let target = Target {
                path: root.join(path),
                source: source(from),
            };
            target.place(is_directory)
        };
        let named = |parent: &Path, name: &str| Place::Named {
            parent: parent.to_owned(),
            name: name.into(),
        };
        let dir = root.join("dir");
        assert_eq!(place("new", "x", false).unwrap(), named(root, "new"));
        assert_eq!(
            place("file", "x", false).unwrap(),
            named(&root.canonicalize().unwrap(), "file")
        );
        assert_eq!(
            place("link", "x", false).unwrap(),
            named(&root.canonicalize().unwrap(), "file")
        );
        assert_eq!(place("dir", "x", false).unwrap(), named(&dir, "x"));
        assert_eq!(place("new", "x", true).unwrap(), named(root, "new"));
        assert_eq!(place("new/", "x", true).unwrap(), named(root, "new"));
        assert_eq!(place("dir", "x", true).unwrap(), named(&dir, "x"));
        assert_eq!(place("dir", "x/.", true).unwrap(), Place::Into(dir));
        assert!(matches!(
            place("new/", "x", false),
            Err(Error::NoDirectory(_))
        ));
        assert!(matches!(
            place("no/new", "x", false),
            Err(Error::NoDirectory(_))
        ));
        assert!(matches!(
            place("file", "x", true),
            Err(Error::NotDirectory(_))
        ));
        let null = Target {
            path: "/dev/null".into(),
            source: source("x"),
        };
        assert!(matches!(null.place(false), Err(Error::Special(_))));
    }
}
