//! Frames between fief and the agent in a tenant (and in the emulated host): see `docs/agent-protocol.md`.
