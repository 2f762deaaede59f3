//! What the VRRP thread knows of its instances and of the interfaces that they speak on.

use std::collections::VecDeque;

use super::*;

/// One interface, as one family sees it.
pub(super) struct Link {
    pub(super) ifindex: u32,
    pub(super) family: Family,
    /// For plain adverts, in both directions, and to hear those behind an authentication header. None where there is
    /// no such interface: then the instance is in FAULT.
    pub(super) sockets: Vec<AdvertSocket>,
    /// VRID to node.
    pub(super) nodes: Box<[Option<usize>; 256]>,
    /// Nodes that announce, in turn.
    pub(super) announcing: VecDeque<usize>,
    /// When the next announcement may leave.
    pub(super) announce_at: Monotonic,
    /// VRIDs of others that were told of.
    pub(super) strangers: Box<[bool; 256]>,
}

/// One heartbeat interface, as one family sees it.
pub(super) struct Pulse {
    pub(super) ifindex: u32,
    pub(super) family: Family,
    pub(super) socket: HeartbeatSocket,
    /// VRID to node, and which way of that node this is.
    pub(super) nodes: Box<[Option<(usize, usize)>; 256]>,
}

/// One instance.
pub(super) struct Node {
    pub(super) machine: Machine,
    pub(super) format: Format,
    pub(super) guard: Guard,
    pub(super) rules: Rules,
    pub(super) old_checksum: OldChecksum,
    /// Who sent the last advert that counted.
    pub(super) heard: Option<IpAddr>,
    /// When it may be said again that a master of lower priority was heard.
    pub(super) lower_at: Monotonic,
    pub(super) announce_interval: Duration,
    pub(super) lease: u32,
    pub(super) group: Option<usize>,
    /// What `group` was before it was removed.
    pub(super) left_group: Option<usize>,
    pub(super) link: usize,
    /// Indexes of its heartbeat interfaces.
    pub(super) pulses: Vec<usize>,
    /// Of adverts there.
    pub(super) pulse_format: Format,
    pub(super) ways: Ways,
    /// As told.
    pub(super) silent: u32,
    /// The master has heard nothing of what we were meanwhile: it is told when its adverts come over `interface` again.
    pub(super) owes_farewell: bool,
    pub(super) identification: u16,
    /// Of its multicast adverts, if they come from the virtual router's MAC.
    pub(super) envelope: Option<Envelope>,
    pub(super) frames: Vec<(SockAddr, Frame)>,
    pub(super) next_frame: usize,
    pub(super) frames_left: usize,
    /// It waits for its turn on its link, perhaps without frames that are left.
    pub(super) is_announcing: bool,
    pub(super) fault: Option<FaultCause>,
    /// What was told since the last transition, one bit for each kind of remark.
    pub(super) told: u32,
    /// When a claim was told last.
    pub(super) told_claim: Option<Monotonic>,
    /// It has handed over and not heard of the new master yet.
    pub(super) resigned: bool,
}

impl Link {
    pub(super) fn open(instance: &Instance) -> Result<Self, StartError> {
        let (ifindex, family) = (instance.ifindex, instance.family());
        let mut link = Self {
            ifindex,
            family,
            sockets: Vec::new(),
            nodes: Box::new([None; 256]),
            announcing: VecDeque::new(),
            announce_at: Monotonic::default(),
            strangers: Box::new([false; 256]),
        };
        link.add_socket(instance, PROTOCOL)?;
        Ok(link)
    }

    pub(super) fn add_socket(&mut self, instance: &Instance, protocol: u8) -> Result<(), StartError> {
        if instance.absent.is_some() {
            return Ok(());
        }
        let socket = AdvertSocket::open(&instance.interface, self.ifindex, self.family, protocol);
        self.sockets.push(socket.map_err(|source| Self::error(instance, source))?);
        Ok(())
    }

    pub(super) fn is_of(&self, instance: &Instance) -> bool {
        (self.ifindex, self.family) == (instance.ifindex, instance.family())
    }

    pub(super) fn join(&self, instance: &Instance, group: IpAddr) -> Result<(), StartError> {
        let joined = self.sockets.iter().try_for_each(|socket| socket.join(group));
        joined.map_err(|source| Self::error(instance, source))
    }

    pub(super) fn error(instance: &Instance, source: io::Error) -> StartError {
        StartError::Socket { interface: instance.interface.clone(), source }
    }
}

impl Pulse {
    pub(super) fn open(instance: &Instance, ifindex: u32) -> Result<Self, StartError> {
        let family = instance.family();
        let socket =
            HeartbeatSocket::open(ifindex, family).map_err(|source| Self::error(instance, source))?;
        Ok(Self { ifindex, family, socket, nodes: Box::new([None; 256]) })
    }

    pub(super) fn is_at(&self, ifindex: u32, family: Family) -> bool {
        (self.ifindex, self.family) == (ifindex, family)
    }

    pub(super) fn join(&self, instance: &Instance) -> Result<(), StartError> {
        self.socket.join(instance.multicast).map_err(|source| Self::error(instance, source))
    }

    pub(super) fn error(instance: &Instance, source: io::Error) -> StartError {
        StartError::Heartbeat { instance: instance.name.clone(), source }
    }
}

impl Node {
    pub(super) fn member(&self, now: Monotonic, is_held: bool) -> Member {
        Member {
            state: self.machine.state(),
            wants_master: self.machine.wants_master(now),
            own: match self.fault {
                None if is_held => Own::Waiting,
                None => Own::Ready,
                Some(FaultCause::Untried) => Own::Waiting,
                Some(_) => Own::Failed,
            },
        }
    }

    /// Its link is still to be found.
    pub(super) fn new((instance, start): (&Instance, &Start)) -> io::Result<Self> {
        let standing = start.standing;
        let frames = instance.addresses.iter().map(|address| {
            let frame = announce::announcement(address.address, address.mac, address.router);
            announced_on(address.ifindex, Family::of(address.address)).map(|interface| (interface, frame))
        });
        let advert_mac =
            instance.advert_mac.filter(|_| instance.peers.is_empty() && instance.absent.is_none());
        let envelope = advert_mac.map(|mac| Envelope::new(instance.ifindex, mac, instance.multicast));
        let checksum = match (instance.family(), instance.version) {
            (Family::V6, _) => Checksum::PseudoHeader,
            (Family::V4, Version::V2) => Checksum::Message,
            (Family::V4, Version::V3) if instance.checksum_of_message => Checksum::Message,
            (Family::V4, Version::V3) => Checksum::PseudoHeader,
        };
        let mut format = Format {
            vrid: instance.vrid,
            version: instance.version,
            interval: instance.advert_interval,
            authentication: instance.authentication,
            checksum,
            source: instance.source,
            peers: instance.peers.clone(),
            multicast: instance.multicast,
            ttl: if instance.peers.is_empty() { 255 } else { instance.unicast_ttl },
            ttl_limits: instance.ttl_limits.clone(),
            addresses: instance.advertised().collect(),
        };
        let pulse_format = Format { peers: Vec::new(), ttl: 255, ..format.clone() };
        let is_old = !instance.peers.is_empty() && instance.old_checksum == OldChecksum::Always;
        if is_old && (instance.family(), checksum) == (Family::V4, Checksum::PseudoHeader) {
            format.checksum = Checksum::OldUnicast;
        }
        let mut machine = Machine::new(Settings {
            source: instance.source,
            version: instance.version,
            priority: standing.priority,
            advert_interval: instance.advert_interval,
            start_as_master: instance.start_as_master,
            preempt: instance.preempt,
            garp: instance.garp,
            rules: instance.rules,
            down_timer_adverts: instance.down_timer_adverts,
            grouped: instance.group.is_some(),
        });
        if start.handed_over {
            machine.hand_over(None, clock(), &mut Effects::new());
        }
        Ok(Self {
            machine,
            guard: Guard::new(&format, instance.signing.as_ref(), start.numbers.clone(), since_epoch()),
            pulse_format,
            format,
            rules: instance.rules,
            old_checksum: instance.old_checksum,
            heard: None,
            lower_at: Monotonic::default(),
            announce_interval: instance.announce_interval,
            pulses: Vec::new(),
            ways: Ways::new(1 + instance.heartbeats.len(), instance.down_timer_adverts),
            silent: 0,
            owes_farewell: false,
            lease: instance.lease,
            group: instance.group,
            left_group: None,
            link: usize::MAX,
            identification: 0,
            envelope: envelope.transpose()?,
            frames: frames.collect::<io::Result<_>>()?,
            next_frame: 0,
            frames_left: 0,
            is_announcing: false,
            fault: instance.absent.or(standing.fault),
            told: 0,
            told_claim: None,
            resigned: false,
        })
    }
}
