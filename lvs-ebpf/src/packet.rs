//! A frame as the program may touch it: by copies in and out, each checked against the frame's end.

use core::marker::PhantomData;

use aya_ebpf::{
    helpers::{bpf_csum_diff, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A window over a frame's bytes, from some header to the frame's end. Like a slice of cells, it may be
/// copied, since it never lends a reference to what it shows.
#[derive(Clone, Copy)]
pub struct Packet<'a> {
    start: *mut u8,
    end: *mut u8,
    frame: PhantomData<&'a mut [u8]>,
}

/// Bytes that are summed up at a time.
pub const BLOCK: usize = 128;

impl<'a> Packet<'a> {
    #[inline(always)]
    pub fn new(ctx: &'a XdpContext) -> Self {
        Self { start: ctx.data() as *mut u8, end: ctx.data_end() as *mut u8, frame: PhantomData }
    }

    /// The same for a function of its own that needs the context for nothing else. The compiler would hand such a one the
    /// two addresses instead, as numbers, and numbers are no pointers to the verifier.
    #[inline(always)]
    pub fn of_context(ctx: &'a XdpContext) -> Self {
        // SAFETY: the kernel gave us the context.
        let (start, end) = unsafe {
            ((&raw const (*ctx.ctx).data).read_volatile(), (&raw const (*ctx.ctx).data_end).read_volatile())
        };
        Self { start: start as usize as *mut u8, end: end as usize as *mut u8, frame: PhantomData }
    }

    /// The frame of `ctx` with `room` bytes more at its front. None where the driver keeps no such room. Windows that
    /// were opened before must not be used any more; the verifier sees to that.
    #[inline(always)]
    pub fn grown(ctx: &'a XdpContext, room: usize) -> Option<Self> {
        // SAFETY: a helper on the context that the kernel gave us.
        let refused = unsafe { bpf_xdp_adjust_head(ctx.ctx, -(room as i32)) };
        (refused == 0).then(|| Self::new(ctx))
    }

    /// The same with its first `len` bytes gone.
    #[inline(always)]
    pub fn shrunk(ctx: &'a XdpContext, len: usize) -> Option<Self> {
        // SAFETY: as in `grown`.
        let refused = unsafe { bpf_xdp_adjust_head(ctx.ctx, len as i32) };
        (refused == 0).then(|| Self::new(ctx))
    }

    /// The frame of `ctx`, cut or lengthened at its end. None where the driver keeps no room for that. Windows that
    /// were opened before must not be used any more.
    #[inline(always)]
    pub fn resized(ctx: &'a XdpContext, len: usize) -> Option<Self> {
        // Hidden from the optimiser, which would take the frame's end from `len`: the verifier allows no sums with it.
        let now = core::hint::black_box(Self::new(ctx).len());
        let change = (len as i32).wrapping_sub(now as i32);
        // SAFETY: as in `grown`.
        let refused = unsafe { bpf_xdp_adjust_tail(ctx.ctx, change) };
        (refused == 0).then(|| Self::new(ctx))
    }

    /// Bytes in the window.
    #[inline(always)]
    pub fn len(self) -> usize {
        (self.end as usize).wrapping_sub(self.start as usize)
    }

    /// The window that begins `offset` bytes further on.
    #[inline(always)]
    pub fn skip(self, offset: usize) -> Self {
        Self { start: self.start.wrapping_add(offset), ..self }
    }

    /// Copies a `T` out, unless it would end behind the frame.
    #[inline(always)]
    pub fn read<T: FromBytes + Copy>(self, offset: usize) -> Option<T> {
        let place = self.place::<T>(offset)?;
        // SAFETY: `place` checked that a whole T lies inside the frame, and any bytes make a T.
        Some(unsafe { load(place) })
    }

    /// Copies a `T` in, unless it would end behind the frame.
    #[inline(always)]
    pub fn write<T: IntoBytes + Immutable>(self, offset: usize, value: T) -> Option<()> {
        let place = self.place::<T>(offset)?;
        // SAFETY: `place` checked that a whole T lies inside the frame, which nobody holds a reference into.
        unsafe { store(place, value) };
        Some(())
    }

    /// Adds [`BLOCK`] bytes, in words as they stand there, to a sum for `checksum::fold`. None if they would end behind
    /// the frame.
    #[inline(always)]
    pub fn sum_of_block(self, offset: usize, sum: u32) -> Option<u32> {
        let place = self.place::<[u32; BLOCK / 4]>(offset)?;
        // SAFETY: `place` checked that a whole block lies inside the frame; the helper reads it.
        let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, place.cast(), BLOCK as u32, sum) };
        u32::try_from(sum).ok()
    }

    /// Where a `T` at `offset` lies. Written as the comparison of two pointers into the packet, which is the
    /// form the verifier understands; an offset is a header's length, far from wrapping.
    #[inline(always)]
    fn place<T>(self, offset: usize) -> Option<*mut T> {
        let place = self.start.wrapping_add(offset);
        (place.wrapping_add(size_of::<T>()) <= self.end).then_some(place.cast())
    }
}

// Headers lie two bytes off their natural alignment, behind 14 bytes of Ethernet. The compiler takes BPF for a
// machine that needs alignment and would split an unaligned access into single bytes, several times dearer
// than what the JITs of all supported machines do with a plain one. (Not before LLVM 22 can it be told.)

/// # Safety
/// `place` must point to a whole `T`; alignment is not asked for.
#[inline(always)]
unsafe fn load<T: Copy>(place: *const T) -> T {
    if cfg!(target_arch = "bpf") {
        // SAFETY: as the caller promises; the kernel's JIT makes it one load that may be unaligned.
        unsafe { *place }
    } else {
        // SAFETY: as the caller promises.
        unsafe { place.read_unaligned() }
    }
}

/// # Safety
/// `place` must point to room for a whole `T`; alignment is not asked for.
#[inline(always)]
unsafe fn store<T>(place: *mut T, value: T) {
    if cfg!(target_arch = "bpf") {
        // SAFETY: as the caller promises; the kernel's JIT makes it stores that may be unaligned.
        unsafe { place.write(value) }
    } else {
        // SAFETY: as the caller promises.
        unsafe { place.write_unaligned(value) }
    }
}

#[cfg(test)]
impl<'a> From<&'a mut [u8]> for Packet<'a> {
    fn from(frame: &'a mut [u8]) -> Self {
        let range = frame.as_mut_ptr_range();
        Self { start: range.start, end: range.end, frame: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_read_or_written_behind_the_end() {
        let mut bytes = [1u8, 2, 3, 4, 5];
        let packet = Packet::from(&mut bytes[..]);
        assert_eq!(packet.read::<u32>(1), Some(u32::from_ne_bytes([2, 3, 4, 5])));
        assert_eq!(packet.read::<u32>(2), None);
        assert_eq!(packet.skip(3).read::<u16>(0), Some(u16::from_ne_bytes([4, 5])));
        assert_eq!(packet.skip(4).read::<u16>(0), None);
        assert_eq!(packet.write(2, 0u32), None);
        assert_eq!(packet.write(3, 0u16), Some(()));
        assert_eq!(bytes, [1, 2, 3, 0, 0]);
    }
}
