//! The server over a real unix socket, with a machine that only takes notes.

mod balloon;
mod clients;
mod drafts;
mod drives;
mod files;
mod lifecycle;
mod passthrough;
mod rig;
mod rules;
