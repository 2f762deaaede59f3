//! Where is the program attached, and by what does the next daemon find it there?

use std::{collections::BTreeMap, fs};

use aya::programs::{
    ProgramError, XdpMode,
    links::{FdLink, PinnedLink},
    xdp::XdpLink,
};
use nix::{libc, net::if_::if_nametoindex};

use super::{Dataplane, DataplaneError, Mode, load_error, xdp};
use crate::drift::{Drift, Drifts};

/// The program on one interface.
pub(super) struct Attachment {
    /// Kept open: a pinned link stays attached without, but this one is replaced through it.
    /// `None`: it was detached and could not be attached again.
    link: Option<FdLink>,
    interface: String,
    mode: NamedMode,
}

type NamedMode = (XdpMode, &'static str);

const NATIVE: NamedMode = (XdpMode::Driver, "native");
const GENERIC: NamedMode = (XdpMode::Skb, "generic");

impl Dataplane {
    /// Attaches the program where it is not yet.
    pub fn attach_all(
        &mut self,
        interfaces: &BTreeMap<u32, String>,
        mode: Mode,
    ) -> Result<(), DataplaneError> {
        for (ifindex, name) in interfaces {
            if self.links.get(ifindex).is_none_or(|attachment| attachment.link.is_none()) {
                self.attach(name, *ifindex, mode)?;
                tracing::info!(interface = %name, "XDP attached");
            }
        }
        Ok(())
    }

    /// Attaches the program to an interface, or takes over the link that an earlier daemon left: then the
    /// program is replaced between two packets.
    fn attach(&mut self, interface: &str, ifindex: u32, mode: Mode) -> Result<(), DataplaneError> {
        let wanted = match mode {
            Mode::Native => vec![NATIVE],
            Mode::Generic => vec![GENERIC],
            Mode::Auto => vec![NATIVE, GENERIC],
        };
        for mode in &wanted {
            if self.take_over(interface, ifindex, *mode)? {
                return Ok(());
            }
        }
        // Left in another mode than the one asked for now.
        for mode in [NATIVE, GENERIC] {
            let _ = fs::remove_file(self.pins.link_pin(ifindex, mode.1));
        }
        let mut refused = None;
        for mode in wanted {
            if let Some(error) = &refused {
                tracing::warn!(interface, %error, "no native XDP, attaching in generic mode");
            }
            match self.attach_new(interface, ifindex, mode) {
                Err(error @ DataplaneError::Refused { .. }) => refused = Some(error),
                done => return done,
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// Has the link that is pinned run this daemon's program. False where there is none, or it is detached.
    fn take_over(&mut self, interface: &str, ifindex: u32, mode: NamedMode) -> Result<bool, DataplaneError> {
        let Ok(pinned) = PinnedLink::from_pin(self.pins.link_pin(ifindex, mode.1)) else { return Ok(false) };
        let Ok(link) = XdpLink::try_from(FdLink::from(pinned)) else { return Ok(false) };
        let program = xdp(&mut self.ebpf)?;
        // Fails where the interface went away and another has its number now.
        let replaced = program.attach_to_link(link).and_then(|id| program.take_link(id));
        let Some(link) = replaced.ok().and_then(|link| FdLink::try_from(link).ok()) else { return Ok(false) };
        self.links.insert(ifindex, Attachment { link: Some(link), interface: interface.to_owned(), mode });
        Ok(true)
    }

    fn attach_new(&mut self, interface: &str, ifindex: u32, mode: NamedMode) -> Result<(), DataplaneError> {
        let (xdp_mode, name) = mode;
        let refused =
            |reason: String| DataplaneError::Refused { interface: interface.to_owned(), mode: name, reason };
        let program = xdp(&mut self.ebpf)?;
        let attached = program.attach_to_if_index(ifindex, xdp_mode).and_then(|id| program.take_link(id));
        let link = match attached {
            Ok(link) => link,
            Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(DataplaneError::Busy { interface: interface.to_owned() });
            }
            Err(ProgramError::SyscallError(error)) => return Err(refused(error.io_error.to_string())),
            Err(error) => return Err(refused(error.to_string())),
        };
        // aya falls back to netlink where the kernel refuses a link; such an attachment dies with us.
        let link = FdLink::try_from(link).map_err(|_| refused("it supports no bpf_link".to_owned()))?;
        let pinned = link
            .pin(self.pins.link_pin(ifindex, name))
            .map_err(|error| refused(format!("its link cannot be pinned: {error}")))?;
        let attachment = Attachment { link: Some(pinned.into()), interface: interface.to_owned(), mode };
        self.links.insert(ifindex, attachment);
        Ok(())
    }

    /// Pins links again that are not pinned any more, and attaches the program again where it was detached or another one
    /// has its place.
    pub(super) fn mend_attachments(&mut self, drifts: &Drifts) -> Result<(), DataplaneError> {
        let program = xdp(&mut self.ebpf)?.info().map_err(load_error)?.id();
        for ifindex in self.links.keys().copied().collect::<Vec<_>>() {
            let Some(Attachment { link, interface, mode }) = self.links.get_mut(&ifindex) else { continue };
            let (link, interface, mode) = (link.take(), interface.clone(), *mode);
            let runs_another = |link: &FdLink| link.info().is_ok_and(|info| info.program_id() != program);
            let replaced = link.as_ref().is_some_and(runs_another);
            let pin = self.pins.link_pin(ifindex, mode.1);
            if let Some(link) = link
                && !pin.exists()
            {
                match link.pin(&pin) {
                    Ok(_) => {
                        tracing::warn!(interface, "the program's link was not pinned any more, it is again");
                        drifts.count(Drift::Pins, 1);
                    }
                    // The link is gone with it.
                    Err(error) => {
                        tracing::error!(interface, %error, "the program's link cannot be pinned again")
                    }
                }
            }
            if !self.take_over(&interface, ifindex, mode)? {
                // An interface that is gone is followed by the host task.
                if if_nametoindex(interface.as_str()) != Ok(ifindex) {
                    continue;
                }
                let _ = fs::remove_file(&pin);
                if let Err(error) = self.attach_new(&interface, ifindex, mode) {
                    tracing::error!(interface, %error, "the XDP program was detached and cannot be attached again");
                    continue;
                }
            } else if !replaced {
                continue;
            }
            tracing::warn!(interface, "the XDP program was detached or replaced, it is in place again");
            drifts.count(Drift::Attachments, 1);
        }
        Ok(())
    }

    /// Detaches from interfaces that have no use any more, and frees the maps of other versions. To be called
    /// when all wanted interfaces are attached.
    pub fn forget_unused(&mut self, interfaces: &BTreeMap<u32, String>) {
        self.links.retain(|ifindex, _| interfaces.contains_key(ifindex));
        for pin in self.pins.all_links() {
            let ifindex = pin
                .file_name()
                .and_then(|name| name.to_str()?.split('-').next()?.parse::<u32>().ok())
                .unwrap_or_default();
            if !self.links.contains_key(&ifindex) {
                tracing::info!(ifindex, "detaching from an interface that is no longer used");
                let _ = fs::remove_file(pin);
            }
        }
        self.pins.remove_other_layouts();
    }
}
