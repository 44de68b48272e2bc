//! Ids of the host that a container's users are.

/// User and group ids of the host that are a container's 0, 1, 2 ….
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    pub first: u32,
    pub count: u32,
}
