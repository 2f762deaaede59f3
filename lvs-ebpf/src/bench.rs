//! What `cargo xtask bench` puts before the program that it measures: BPF_PROG_TEST_RUN hands each run the frame as the one
//! before left it, and always the same flow. An object of its own, so that `lvsd` does not carry it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod bpf {
    use aya_ebpf::{
        bindings::xdp_action,
        helpers::{bpf_get_prandom_u32, bpf_redirect, bpf_xdp_adjust_head},
        macros::{map, xdp},
        maps::{PerCpuArray, ProgramArray},
        programs::XdpContext,
    };

    /// Where the words of [`FRAME`] go. None is across a field of IPv4, so that what the program under test reads was
    /// written by one store, as far as the CPU can see.
    const PLACES: [usize; 9] = [0, 6, 14, 22, 30, 38, 46, 54, 56];
    const LENGTH: usize = 64;
    /// Those of a frame that is longer: a neighbour solicitation.
    const LATER_PLACES: [usize; 3] = [64, 72, 78];
    const SOLICITATION: usize = 86;
    const SOURCE: usize = 3;
    const PORTS: usize = 4;

    #[unsafe(no_mangle)]
    static FRAME: [u8; SOLICITATION] = [0; SOLICITATION];
    #[unsafe(no_mangle)]
    static IS_SOLICITATION: u32 = 0;
    /// Bits of the word with the source address that differ between flows.
    #[unsafe(no_mangle)]
    static SOURCE_MASK: u64 = 0;
    /// The same of the word with the ports.
    #[unsafe(no_mangle)]
    static PORTS_MASK: u64 = 0;
    /// Destination ports from 1 on, one of which is picked; 0 = that of the frame.
    #[unsafe(no_mangle)]
    static SERVICES: u32 = 0;
    /// The program under test puts so many bytes before the frame, to be taken off again.
    #[unsafe(no_mangle)]
    static GROWS: u32 = 0;

    /// The interface that [`send`] sends on.
    #[unsafe(no_mangle)]
    static OUT: u32 = 0;

    #[map]
    static UNDER_TEST: ProgramArray = ProgramArray::with_max_entries(1, 0);

    /// Frames that [`arrive`] has seen.
    #[map]
    static ARRIVED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

    #[xdp]
    pub fn prologue(ctx: XdpContext) -> u32 {
        try_prologue(&ctx).map_or(xdp_action::XDP_ABORTED, |()| {
            // SAFETY: nothing is left behind here that would have to be dropped.
            unsafe { UNDER_TEST.tail_call(&ctx, 0) };
            xdp_action::XDP_ABORTED
        })
    }

    #[inline(always)]
    fn try_prologue(ctx: &XdpContext) -> Option<()> {
        let grows = global(&GROWS) as usize;
        if grows > 0 && ctx.data_end() - ctx.data() > LENGTH {
            // SAFETY: a helper on the context that the kernel gave us.
            (unsafe { bpf_xdp_adjust_head(ctx.ctx, grows as i32) } == 0).then_some(())?;
        }
        // SAFETY: a helper without arguments.
        let random = u64::from(unsafe { bpf_get_prandom_u32() });
        // SAFETY: all places are eight bytes before the frame's end, or more; BPF's loads need no alignment.
        let word = |place: usize| unsafe { (&raw const FRAME).byte_add(place).cast::<u64>().read_volatile() };
        let mut frame = PLACES.map(word);
        frame[SOURCE] ^= random << 32 & global(&SOURCE_MASK);
        frame[PORTS] ^= (random << 32 | random << 48) & global(&PORTS_MASK);
        let services = u64::from(global(&SERVICES));
        if services > 0 {
            let port = (random * services >> 32) as u16 + 1;
            frame[PORTS] |= u64::from(port.to_be()) << 48;
        }
        let (data, end) = (ctx.data(), ctx.data_end());
        (data + LENGTH <= end).then_some(())?;
        for (place, word) in PLACES.iter().zip(frame) {
            // SAFETY: all places end within LENGTH, which lies inside the frame. BPF's stores need no alignment.
            unsafe { *((data + place) as *mut u64) = word };
        }
        if global(&IS_SOLICITATION) != 0 {
            (data + SOLICITATION <= end).then_some(())?;
            for place in LATER_PLACES {
                // SAFETY: as above, within SOLICITATION.
                unsafe { *((data + place) as *mut u64) = word(place) };
            }
        }
        Some(())
    }

    /// What any program costs.
    #[xdp]
    pub fn floor(_: XdpContext) -> u32 {
        xdp_action::XDP_TX
    }

    /// The least that a balancer of one server without services would do: see that it is a whole TCP packet of IPv4, swap its
    /// MACs, send.
    #[xdp]
    pub fn phys(ctx: XdpContext) -> u32 {
        if try_phys(&ctx).is_some() { xdp_action::XDP_TX } else { xdp_action::XDP_PASS }
    }

    #[inline(always)]
    fn try_phys(ctx: &XdpContext) -> Option<()> {
        const IPV4: u16 = 0x0800u16.to_be();
        const FRAGMENT: u16 = 0x3fffu16.to_be();
        const TCP: u8 = 6;
        const ETHERNET: usize = 14;
        const LEAST: usize = 20;
        let (data, end) = (ctx.data(), ctx.data_end());
        (data + ETHERNET + LEAST <= end).then_some(())?;
        let ip = data + ETHERNET;
        // SAFETY: an Ethernet and an IPv4 header were seen to be there. BPF's loads and stores need no alignment.
        let (kind, version, total, fragment, protocol) = unsafe {
            (
                *((data + 12) as *const u16),
                *(ip as *const u8),
                *((ip + 2) as *const u16),
                *((ip + 6) as *const u16),
                *((ip + 9) as *const u8),
            )
        };
        let (total, header) = (usize::from(u16::from_be(total)), usize::from(version & 0xf) * 4);
        let is_whole = version >> 4 == 4 && header >= LEAST && ETHERNET + total <= end - data;
        (kind == IPV4 && is_whole && fragment & FRAGMENT == 0 && protocol == TCP).then_some(())?;
        let tcp = ip + header;
        (tcp + LEAST <= end).then_some(())?;
        // SAFETY: a TCP header was seen to be there.
        let offset = usize::from(unsafe { *((tcp + 12) as *const u8) } >> 4) * 4;
        (offset >= LEAST && header + offset <= total).then_some(())?;
        // SAFETY: as above.
        unsafe {
            let to = (*(data as *const u32), *((data + 4) as *const u16));
            let from = (*((data + 6) as *const u32), *((data + 10) as *const u16));
            *(data as *mut u32) = from.0;
            *((data + 4) as *mut u16) = from.1;
            *((data + 6) as *mut u32) = to.0;
            *((data + 10) as *mut u16) = to.1;
        }
        Some(())
    }

    /// `floor` for what puts a header before the frame: what giving room costs, and taking it back.
    #[xdp]
    pub fn grow(ctx: XdpContext) -> u32 {
        // SAFETY: a helper on the context that the kernel gave us.
        unsafe { bpf_xdp_adjust_head(ctx.ctx, -(global(&GROWS) as i32)) };
        xdp_action::XDP_TX
    }

    /// For live frames: out into a cable.
    #[xdp]
    pub fn send(_: XdpContext) -> u32 {
        // SAFETY: a helper on plain integers.
        unsafe { bpf_redirect(global(&OUT), 0) as u32 }
    }

    /// At the other end of a cable: frames to where the generator sends are counted and gone, all others are the host's.
    #[xdp]
    pub fn arrive(ctx: XdpContext) -> u32 {
        const UDP_OF_IPV4: (u16, u8) = (0x0800u16.to_be(), 17);
        let data = ctx.data();
        if data + LENGTH > ctx.data_end() {
            return xdp_action::XDP_PASS;
        }
        // SAFETY: LENGTH bytes of the frame were seen to be there. BPF's loads need no alignment.
        let kind = unsafe { (*((data + 12) as *const u16), *((data + 23) as *const u8)) };
        if kind != UDP_OF_IPV4 {
            return xdp_action::XDP_PASS;
        }
        if let Some(count) = ARRIVED.get_ptr_mut(0) {
            // SAFETY: an element of this CPU's own counter.
            unsafe { *count += 1 };
        }
        xdp_action::XDP_DROP
    }

    /// As it was written before the program was loaded.
    #[inline(always)]
    fn global<T>(place: &T) -> T {
        // SAFETY: a reference is valid; volatile, since the compiler knows only the value that stands here.
        unsafe { core::ptr::read_volatile(place) }
    }

    #[panic_handler]
    fn panic(_info: &core::panic::PanicInfo) -> ! {
        loop {}
    }

    #[unsafe(link_section = "license")]
    #[unsafe(no_mangle)]
    static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
}

/// As in `main.rs`.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
