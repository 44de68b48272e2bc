use virtio_vsock::packet::{PKT_HEADER_SIZE, VsockPacket};

use super::super::packet::{HEADER_BYTES, Header, Key};

fn sample() -> Header {
    Header {
        src_cid: 0x0102_0304_0506_0708,
        dst_cid: 0x1112_1314_1516_1718,
        src_port: 0x2122_2324,
        dst_port: 0x3132_3334,
        len: 0x4142_4344,
        kind: 0x5152,
        op: 0x6162,
        flags: 0x7172_7374,
        buf_alloc: 0x8182_8384,
        fwd_cnt: 0x9192_9394,
    }
}

#[test]
fn a_header_is_laid_out_as_rust_vmm_has_it() {
    let header = sample();
    assert_eq!(PKT_HEADER_SIZE, HEADER_BYTES);
    let mut room = [0; HEADER_BYTES];
    // SAFETY: the room outlives the packet and nobody else uses it.
    let mut packet = unsafe { VsockPacket::new(&mut room, None) }.unwrap();
    packet.set_header_from_raw(&header.bytes()).unwrap();
    let read = Header {
        src_cid: packet.src_cid(),
        dst_cid: packet.dst_cid(),
        src_port: packet.src_port(),
        dst_port: packet.dst_port(),
        len: packet.len(),
        kind: packet.type_(),
        op: packet.op(),
        flags: packet.flags(),
        buf_alloc: packet.buf_alloc(),
        fwd_cnt: packet.fwd_cnt(),
    };
    assert_eq!(read, header);
}

#[test]
fn a_header_survives_the_way_to_bytes_and_back() {
    assert_eq!(Header::parse(&sample().bytes()), sample());
    assert_eq!(Header::parse(&[0; HEADER_BYTES]), Header::default());
    let key = sample().key_from_guest();
    let expected = Key {
        host_port: 0x3132_3334,
        guest_port: 0x2122_2324,
    };
    assert_eq!(key, expected);
}
