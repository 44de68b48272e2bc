mod client;
mod document;
mod wire;
