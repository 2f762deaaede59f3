//! How adverts and announcements leave.

use super::*;

impl Engine {
    /// True if it has left for at least one receiver.
    pub(super) fn advertise(&mut self, index: usize, priority: u8) -> bool {
        let mut sent = false;
        let node = &mut self.nodes[index];
        // One for all copies: so their receivers know them. The kernel would choose one of its own in place of zero.
        node.identification = node.identification.checked_add(1).unwrap_or(1);
        for receiver in 0..self.nodes[index].format.peers.len().max(1) {
            let node = &self.nodes[index];
            let destination = node.format.peers.get(receiver).copied();
            let destination = destination.unwrap_or(node.format.multicast);
            sent |= self.advertise_to(index, priority, destination);
        }
        // A master whose own interface takes no adverts says nothing elsewhere, lest its lease end unnoticed. Its
        // farewell has to arrive all the more.
        if sent || priority == 0 {
            sent |= self.beat(index, priority);
        }
        if sent && priority == 0 {
            self.shared.board.count(index, Counter::ResignationsSent);
        }
        sent
    }

    /// Over the heartbeat interfaces, by multicast.
    pub(super) fn beat(&mut self, index: usize, priority: u8) -> bool {
        let mut sent = false;
        for pulse in 0..self.nodes[index].pulses.len() {
            let node = &mut self.nodes[index];
            let (Some(pulse), destination) = (node.pulses.get(pulse), node.format.multicast) else {
                continue;
            };
            // A multicast advert is its own copy, to the last byte of what authenticates it.
            if !node.format.peers.is_empty() {
                self.packet.clear();
                node.pulse_format.encode(priority, destination, node.identification, &mut self.packet);
                node.guard.seal(&node.pulse_format, &mut self.packet, since_epoch());
            }
            match self.pulses[*pulse].socket.send(&self.packet, destination) {
                Ok(()) => sent = true,
                Err(error) => self.send_failed(index, destination, &error),
            }
        }
        sent
    }

    pub(super) fn send_failed(&mut self, index: usize, destination: IpAddr, error: &io::Error) {
        self.shared.board.count(index, Counter::SendFailures);
        let error = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
        self.tell(index, EventKind::SendFailed { destination, error });
    }

    pub(super) fn advertise_to(&mut self, index: usize, priority: u8, destination: IpAddr) -> bool {
        let node = &mut self.nodes[index];
        self.packet.clear();
        node.format.encode(priority, destination, node.identification, &mut self.packet);
        node.guard.seal(&node.format, &mut self.packet, since_epoch());
        let sent = match (&node.envelope, self.links[node.link].sockets.as_slice()) {
            (Some(envelope), _) if destination.is_multicast() => self.frames.send_in(envelope, &self.packet),
            (_, [socket, ..]) => socket.send(&self.packet, destination),
            (_, []) => return false,
        };
        match sent {
            Ok(()) => self.shared.board.count(index, Counter::AdvertsSent),
            Err(error) => {
                self.send_failed(index, destination, &error);
                return false;
            }
        }
        true
    }

    /// Sends some of the frames that are left, so that adverts are never held up by a thousand of them.
    pub(super) fn announce(&mut self) {
        for _ in 0..ANNOUNCE_BATCH {
            let now = clock();
            let Some(place) = self.announcing.due(now) else { break };
            let link = &mut self.links[place];
            if let Some(index) = link.announcing.pop_front() {
                let node = &mut self.nodes[index];
                // Not without the lease, which may have run out meanwhile.
                let holds = now.nanos() < self.leases.until(node.lease);
                match node.frames.get(node.next_frame).filter(|_| holds && node.frames_left > 0) {
                    Some((interface, frame)) => {
                        let counter = match self.frames.send(frame, interface) {
                            Ok(()) => Counter::AnnouncementsSent,
                            Err(_) => Counter::AnnouncementFailures,
                        };
                        self.shared.board.count(index, counter);
                        node.frames_left -= 1;
                        node.next_frame = (node.next_frame + 1) % node.frames.len();
                        link.announce_at = now + node.announce_interval;
                        link.announcing.push_back(index);
                    }
                    None => {
                        node.frames_left = 0;
                        node.is_announcing = false;
                    }
                }
            }
            let next = if link.announcing.is_empty() { NEVER } else { link.announce_at };
            self.announcing.set(place, next);
        }
    }
}
