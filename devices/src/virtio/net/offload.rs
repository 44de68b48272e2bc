//! Features, and what the driver's choice of them means for the tap.

/// Bytes of `struct virtio_net_hdr_v1` (virtio 1.3 §5.1.6) before each frame.
pub(super) const HEADER_BYTES: usize = 12;

/// Where `gso_type` is in the header, and its value for a frame that is none of many segments.
pub(super) const GSO_TYPE_OFFSET: usize = 1;
pub(super) const GSO_NONE: u8 = 0;

/// Where `num_buffers` is in the header.
pub(super) const NUM_BUFFERS_OFFSET: usize = 10;

/// Bytes of an Ethernet header, and of one with a VLAN tag.
pub(super) const ETHERNET_BYTES: usize = 14;
pub(super) const VLAN_BYTES: usize = ETHERNET_BYTES + 4;

/// Largest frame with its header. No packet is longer than 65,535 bytes; virtio 1.3 §5.1.6.3.1 has buffers of 65,562.
pub(super) const MAX_FRAME: usize = 65_562 + HEADER_BYTES;

/// Feature bits (virtio 1.3 §5.1.3).
pub(super) mod feature {
    pub const CSUM: u64 = 1 << 0;
    pub const GUEST_CSUM: u64 = 1 << 1;
    pub const MTU: u64 = 1 << 3;
    pub const MAC: u64 = 1 << 5;
    pub const GUEST_TSO4: u64 = 1 << 7;
    pub const GUEST_TSO6: u64 = 1 << 8;
    pub const GUEST_ECN: u64 = 1 << 9;
    pub const HOST_TSO4: u64 = 1 << 11;
    pub const HOST_TSO6: u64 = 1 << 12;
    pub const HOST_ECN: u64 = 1 << 13;
    pub const MRG_RXBUF: u64 = 1 << 15;
    pub const STATUS: u64 = 1 << 16;
    pub const GUEST_USO4: u64 = 1 << 54;
    pub const GUEST_USO6: u64 = 1 << 55;
    pub const HOST_USO: u64 = 1 << 56;

    /// What every tap can do.
    pub const ALWAYS: u64 = CSUM
        | GUEST_CSUM
        | GUEST_TSO4
        | GUEST_TSO6
        | GUEST_ECN
        | HOST_TSO4
        | HOST_TSO6
        | HOST_ECN
        | MRG_RXBUF
        | STATUS;

    /// What a tap can do that segments UDP.
    pub const UDP: u64 = GUEST_USO4 | GUEST_USO6 | HOST_USO;

    /// With any of these the driver is given frames that are larger than its MTU.
    pub const LARGE: u64 = GUEST_TSO4 | GUEST_TSO6 | GUEST_USO4 | GUEST_USO6;
}

/// What the tap may give a driver that chose `features` (TUN_F_*). A driver that breaks the rules of virtio 1.3 §5.1.3.1
/// (segmentation needs checksums, ECN needs segmentation) gets less.
pub(super) fn tap_offloads(features: u64) -> libc::c_uint {
    let has = |bits| features & bits == bits;
    if !has(feature::GUEST_CSUM) {
        return 0;
    }
    let mut offloads = libc::TUN_F_CSUM;
    let mut add = |condition, flags| {
        if condition {
            offloads |= flags;
        }
    };
    let (tso4, tso6) = (has(feature::GUEST_TSO4), has(feature::GUEST_TSO6));
    add(tso4, libc::TUN_F_TSO4);
    add(tso6, libc::TUN_F_TSO6);
    add(
        (tso4 || tso6) && has(feature::GUEST_ECN),
        libc::TUN_F_TSO_ECN,
    );
    // The kernel takes them together only.
    add(
        has(feature::GUEST_USO4 | feature::GUEST_USO6),
        libc::TUN_F_USO4 | libc::TUN_F_USO6,
    );
    offloads
}
