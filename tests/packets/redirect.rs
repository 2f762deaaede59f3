//! Whether a redirected frame really leaves by its real server's interface: BPF_PROG_TEST_RUN with live frames
//! sends what the program decides to send.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    process::Command,
};

use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, XdpMode};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
        },
        time::{TimeVal, TimeValLike as _},
    },
};

use crate::*;

#[test]
fn a_redirected_frame_leaves_by_the_interface_of_its_real_server() {
    let (Some(mut director), Some(mut receiver)) = (director(), Director::load()) else { return };
    // This test's thread alone goes there; the namespace goes with it.
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    for command in ["link add x_near type veth peer x_far", "link set x_near up", "link set x_far up"] {
        assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success(), "ip {command}");
    }
    // veth takes redirected frames only towards a peer with a program. This one passes all.
    receiver.program_mut().attach("x_far", XdpMode::Driver).unwrap();
    director.real(20, real(2, if_nametoindex("x_near").unwrap()));
    let far = capture();

    let frame = udp(VIP, DNS);
    let sent = director.program_mut().test_run(TestRunOptions {
        data_in: Some(&frame),
        attrs: TestRunAttrs::new().xdp_live_frames(1),
        ..TestRunOptions::default()
    });
    if let Err(error) = sent {
        lvs_tests::skip(&format!("no live frames before Linux 5.18 ({error})"));
        return;
    }
    assert_eq!(director.outcomes()[Outcome::Redirected as usize], 1);
    let wanted = routed(&frame, 2);
    let mut buffer = [0; 2048];
    // Among the namespace's own IPv6 noise.
    let arrived = (0..50).any(|_| {
        let length =
            recv(far.as_raw_fd(), &mut buffer, MsgFlags::empty()).expect("a frame within two seconds");
        buffer[..length] == wanted
    });
    assert!(arrived);
}

/// Sees what the namespace's interfaces receive.
fn capture() -> OwnedFd {
    let socket =
        socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll).unwrap();
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(2)).unwrap();
    socket
}
