//! What becomes of an advert that comes in?

use super::*;

impl Engine {
    pub(super) fn receive(&mut self, link: usize) {
        let mut room = std::mem::take(&mut self.received);
        for socket in 0..self.links[link].sockets.len() {
            for _ in 0..RECEIVE_BATCH {
                let Some(datagram) = self.links[link].sockets[socket].receive(&mut room) else { break };
                let node = datagram.and_then(|datagram| {
                    let vrid = datagram.vrid()?;
                    Some((self.links[link].nodes[usize::from(vrid)]?, datagram))
                });
                match node {
                    Some((index, datagram)) => self.hear(index, 0, datagram),
                    None if datagram.is_some_and(|it| self.is_felt(self.links[link].ifindex, &it)) => {}
                    None => self.wonder(link, datagram.and_then(|it| Some((it.vrid()?, it.source)))),
                }
            }
        }
        self.received = room;
    }

    /// What comes over a heartbeat interface; on one that is an instance's `interface` too, other sockets get the rest.
    pub(super) fn feel(&mut self, pulse: usize) {
        let mut room = std::mem::take(&mut self.received);
        for _ in 0..RECEIVE_BATCH {
            let Some(datagram) = self.pulses[pulse].socket.receive(&mut room) else { break };
            let Some(datagram) = datagram else { continue };
            let node = datagram.vrid().and_then(|vrid| self.pulses[pulse].nodes[usize::from(vrid)]);
            if let Some((index, way)) = node {
                self.hear(index, way, datagram);
            }
        }
        self.received = room;
    }

    pub(super) fn is_felt(&self, ifindex: u32, datagram: &Datagram<'_>) -> bool {
        let pulse = self.pulses.iter().find(|pulse| pulse.is_at(ifindex, Family::of(datagram.source)));
        let node = pulse.zip(datagram.vrid()).and_then(|(pulse, vrid)| pulse.nodes[usize::from(vrid)]);
        node.is_some()
    }

    /// What is of no instance here; with VRID and source if it has them.
    pub(super) fn wonder(&mut self, link: usize, stranger: Option<(u8, IpAddr)>) {
        self.shared.board.count_stray();
        if self.log_unknown_vrids
            && let Some((vrid, from)) = stranger
            && let Some(beside) = self.links[link].nodes.iter().flatten().next().copied()
            && !std::mem::replace(&mut self.links[link].strangers[usize::from(vrid)], true)
        {
            self.tell(beside, EventKind::UnknownVrid { from, vrid });
        }
    }

    pub(super) fn hear(&mut self, index: usize, way: usize, datagram: Datagram<'_>) {
        let (board, node, from) = (&self.shared.board, &mut self.nodes[index], datagram.source);
        let Node { format, pulse_format, guard, ways, machine, rules, .. } = node;
        let datagram = guard.open(datagram);
        let expected = if way == 0 { &*format } else { &*pulse_format };
        let (identification, now) = (datagram.identification, clock());
        // The costly part last. A copy is nothing new, and would look like a replay.
        let received = match expected.accept(&datagram) {
            Ok(received) if ways.is_copy(way, from, identification, received.advert.interval, now) => {
                ways.on_copy(way);
                return self.note_silence(index, way, from);
            }
            Ok(received) => guard.check(format, &datagram, since_epoch()).and_then(|()| {
                let is_deaf = rules.owner_ignore_adverts && machine.priority().is_owner();
                if is_deaf { Err(Rejection::Owner) } else { Ok(received) }
            }),
            Err(rejection) => Err(rejection),
        };
        let received = match received {
            Ok(received) => received,
            Err(rejection) => {
                board.count_rejection(index, rejection);
                self.tell(index, EventKind::Rejected { from, rejection });
                return;
            }
        };
        node.ways.on_advert(way, from, identification, now);
        self.note_silence(index, way, from);
        let board = &self.shared.board;
        board.count(index, Counter::AdvertsReceived);
        if received.advert.priority == 0 {
            board.count(index, Counter::ResignationsReceived);
        } else {
            self.succeeded(index);
        }
        let (board, node) = (&self.shared.board, &mut self.nodes[index]);
        if matches!((&node.guard, &datagram.proof), (Guard::Signature(_), Proof::None)) {
            board.count(index, Counter::Unsigned);
        }
        if node.format.version == Version::V3 && received.checksum == Checksum::Message {
            board.count(index, Counter::ChecksumOfMessage);
        }
        if received.checksum == Checksum::OldUnicast {
            board.count(index, Counter::OldChecksum);
            // It does not take ours as they are. Newer ones do the same as we here.
            let is_new = node.format.checksum == Checksum::PseudoHeader;
            if is_new && node.old_checksum == OldChecksum::FoundOut {
                node.format.checksum = Checksum::OldUnicast;
                self.tell(index, EventKind::OldChecksum { from });
            }
        }
        let (board, node) = (&self.shared.board, &mut self.nodes[index]);
        // RFC 9568 7.1: worth a message, not a reason to discard.
        if received.advert.interval != node.format.interval {
            board.count(index, Counter::IntervalDiffers);
            let (ours, theirs) = (node.format.interval, received.advert.interval);
            self.tell(index, EventKind::IntervalDiffers { from, ours, theirs });
        }
        let (board, node) = (&self.shared.board, &mut self.nodes[index]);
        let own_address = from == node.format.source;
        let is_known = node.rules.skip_check_adv_addr && node.heard == Some(from);
        node.heard = Some(from);
        if received.addresses_differ && !is_known {
            board.count(index, Counter::AddressesDiffer);
            self.tell(index, EventKind::AddressesDiffer { from });
        }
        if own_address {
            self.shared.board.count(index, Counter::OwnAddress);
            self.tell(index, EventKind::OwnAddress { from });
        }
        let was_master = self.nodes[index].machine.state() == State::Master;
        let priority = self.nodes[index].machine.priority().get();
        self.input(index, |machine, now, effects| machine.on_advert(from, &received.advert, now, effects));
        let now = clock();
        let node = &mut self.nodes[index];
        // Its farewell went over `interface`, where nothing may arrive.
        node.owes_farewell |= way > 0 && was_master;
        let theirs = (received.advert.priority, from);
        if node.machine.state() == State::Master
            && received.advert.priority > 0
            && theirs < (priority, node.format.source)
            && now >= node.lower_at
        {
            node.lower_at = now + LOWER_PAUSE;
            self.tell(index, EventKind::LowerPriority { from, priority });
        }
    }

    /// A backup that hears a master over some of its interfaces only says so.
    pub(super) fn note_silence(&mut self, index: usize, way: usize, from: IpAddr) {
        let node = &mut self.nodes[index];
        if node.machine.state() != State::Backup {
            node.ways.forget();
        } else if way == 0 && std::mem::take(&mut node.owes_farewell) {
            self.carry_out(index, Effect::Farewell { peer: from }, clock());
        }
        let node = &mut self.nodes[index];
        let (ways, before) = (node.ways.silent(), std::mem::replace(&mut node.silent, node.ways.silent()));
        node.owes_farewell |= ways & 1 == 1;
        if ways != before {
            self.shared.board.set_silent(index, ways);
            self.tell(index, EventKind::Silent { ways, before });
        }
    }
}
