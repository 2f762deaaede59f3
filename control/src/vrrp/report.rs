//! What does the daemon make of the VRRP thread's events? Log lines, notices, and a nudge for the host task.

use std::collections::HashMap;

use tokio::sync::{mpsc, watch};

use super::{
    Cause, FaultCause, State,
    board::Board,
    driver::{Event, EventKind, Handle},
};
use crate::{
    config::model::Config,
    notify::{Notice, Subject, What},
};

pub struct Reporter {
    instances: Vec<Known>,
    groups: Vec<Known>,
    /// Of each instance.
    interfaces: Vec<String>,
    /// Of each instance.
    group_of: Vec<Option<usize>>,
    /// Of each instance.
    notifies: Vec<Notifies>,
    /// Names with the word of the file.
    trackers: Vec<String>,
    /// Of each instance: its interface and its heartbeat interfaces.
    ways: Vec<Vec<String>>,
    notices: mpsc::Sender<Notice>,
    /// Counts changes that the host has to act on.
    changes: watch::Sender<u64>,
}

/// What is told of an instance only if its file asks for it.
struct Notifies {
    deleted: bool,
    priority_changes: bool,
}

/// An instance or a sync group, and what was told of it last.
struct Known {
    name: String,
    state: State,
}

impl Reporter {
    /// `told` are the states of instances that were told before, by their names: they are not told again.
    pub fn new(
        config: &Config,
        told: &HashMap<String, State>,
        notices: mpsc::Sender<Notice>,
        changes: watch::Sender<u64>,
    ) -> Self {
        let known = |name: &String, state: State| Known { name: name.clone(), state };
        let group_of = |index| config.groups.iter().position(|group| group.members.contains(&index));
        let states: Vec<_> = config
            .instances
            .iter()
            .map(|instance| told.get(&instance.name).copied().unwrap_or_default())
            .collect();
        let common = |members: &[usize]| {
            let mut members = members.iter().filter_map(|index| states.get(*index));
            let first = members.next().copied().unwrap_or_default();
            if members.all(|state| *state == first) { first } else { State::Init }
        };
        Self {
            instances: config
                .instances
                .iter()
                .zip(&states)
                .map(|(it, state)| known(&it.name, *state))
                .collect(),
            interfaces: config.instances.iter().map(|it| it.interface.clone()).collect(),
            groups: config.groups.iter().map(|group| known(&group.name, common(&group.members))).collect(),
            group_of: (0..config.instances.len()).map(group_of).collect(),
            ways: config.instances.iter().map(|it| it.ways().map(str::to_owned).collect()).collect(),
            notifies: config
                .instances
                .iter()
                .map(|it| Notifies {
                    deleted: it.notify.says_deleted,
                    priority_changes: it.notify.priority_changes,
                })
                .collect(),
            trackers: config.trackers.iter().map(|it| format!("{} {}", it.word(), it.name())).collect(),
            notices,
            changes,
        }
    }

    /// Until the VRRP thread has ended.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>, vrrp: Handle) {
        while let Some(Event { instance, kind }) = events.recv().await {
            self.report(instance, kind);
            // One is lost only while others wait, so this is reached after it.
            if events.is_empty() {
                self.catch_up(vrrp.board());
            }
        }
    }

    /// Tells what lost events would have told of states.
    fn catch_up(&mut self, board: &Board) {
        let lost = board.take_lost_events();
        if lost == 0 {
            return;
        }
        tracing::warn!(lost, "VRRP events came too fast to be told, the states are told as they are now");
        for index in 0..self.instances.len() {
            let Some(view) = board.view(index) else { continue };
            self.become_known(
                index,
                view.state,
                What::Became(view.state),
                view.priority,
                "events were lost".to_owned(),
            );
        }
    }

    /// An instance is in a state, which is told if it is another one than was told last.
    fn become_known(&mut self, index: usize, to: State, what: What, priority: u8, cause: String) {
        let change = self.change();
        let Some(known) = self.instances.get_mut(index) else { return };
        let from = std::mem::replace(&mut known.state, to);
        if from == to {
            return;
        }
        let subject = Subject::Instance(index);
        self.notify(Notice { subject, from, what, priority, cause: cause.clone(), change });
        self.follow(index, to, cause, change);
    }

    fn report(&mut self, index: usize, kind: EventKind) {
        let instance = self.instances.get(index).map_or("?", |known| known.name.as_str());
        match kind {
            EventKind::Transition { from, to, cause, priority } => {
                let is_deleted = cause == Cause::Fault(FaultCause::Removed);
                let what = match self.notifies.get(index) {
                    Some(Notifies { deleted: true, .. }) if is_deleted => What::Deleted,
                    _ => What::Became(to),
                };
                let cause = self.text(cause);
                tracing::info!(instance, %from, %to, cause, "VRRP state changed");
                self.become_known(index, to, what, priority, cause);
            }
            EventKind::AddressesUp | EventKind::AddressesDown => {
                self.change();
            }
            EventKind::Rejected { from, rejection } => {
                tracing::warn!(instance, %from, cause = %rejection, "adverts are refused");
            }
            EventKind::AddressesDiffer { from } => {
                tracing::warn!(instance, %from, "a peer advertises other virtual addresses");
            }
            EventKind::OwnAddress { from } => {
                tracing::warn!(instance, %from, "adverts come from our own address");
            }
            EventKind::IntervalDiffers { from, ours, theirs } => {
                tracing::warn!(instance, %from, ?ours, ?theirs, "a peer advertises at another interval");
            }
            EventKind::OldChecksum { from } => {
                tracing::warn!(
                    instance,
                    %from,
                    "a peer computes checksums as keepalived before 1.3.7 did, our adverts do from now on"
                );
            }
            EventKind::Claimed { address, mac, priority } => {
                let mac = mac_text(mac);
                tracing::error!(instance, %address, mac, "split brain: another host claims a virtual address of ours");
                let cause = format!("{address} is claimed by {mac}");
                self.remark(index, What::SplitBrain, State::Master, priority, cause);
            }
            EventKind::LowerPriority { from, priority } => {
                let cause = format!("{from} is master too, with a lower priority");
                tracing::warn!(instance, %from, "a master of lower priority is heard");
                self.remark(index, What::LowerPriority, State::Master, priority, cause);
            }
            EventKind::Priority { state, priority } => {
                tracing::info!(instance, priority, "priority changed");
                if self.notifies.get(index).is_some_and(|it| it.priority_changes) {
                    self.remark(index, What::Priority(state), state, priority, "trackers".to_owned());
                }
            }
            EventKind::UnknownVrid { from, vrid } => {
                let interface = self.interfaces.get(index).map_or("?", String::as_str);
                tracing::warn!(interface, %from, vrid, "adverts of a virtual router that is not configured");
            }
            EventKind::Silent { ways, before } => {
                for (way, interface) in self.ways.get(index).into_iter().flatten().enumerate() {
                    match (before >> way & 1, ways >> way & 1) {
                        (0, 1) => {
                            tracing::warn!(
                                instance,
                                interface,
                                "no adverts come over an interface, only over others"
                            )
                        }
                        (1, 0) => {
                            tracing::info!(instance, interface, "adverts come over the interface again")
                        }
                        _ => {}
                    }
                }
            }
            EventKind::SendFailed { destination, error } => {
                tracing::warn!(instance, %destination, %error, "an advert could not be sent");
            }
        }
    }

    /// A sync group has a state when all its members have.
    fn follow(&mut self, index: usize, to: State, cause: String, change: u64) {
        let Some(of) = self.group_of.get(index).copied().flatten() else { return };
        let mut members = self.instances.iter().zip(&self.group_of).filter(|(_, group)| **group == Some(of));
        let agreed = members.all(|(member, _)| member.state == to);
        let Some(group) = self.groups.get_mut(of).filter(|group| agreed && group.state != to) else { return };
        let from = std::mem::replace(&mut group.state, to);
        tracing::info!(group = group.name, %from, %to, cause, "sync group changed");
        // keepalived has no priority for groups either.
        let what = What::Became(to);
        self.notify(Notice { subject: Subject::Group(of), from, what, priority: 0, cause, change });
    }

    /// What leaves the state as it is.
    fn remark(&self, index: usize, what: What, from: State, priority: u8, cause: String) {
        let (subject, change) = (Subject::Instance(index), *self.changes.borrow());
        self.notify(Notice { subject, from, what, priority, cause, change });
    }

    fn notify(&self, notice: Notice) {
        if let Err(error) = self.notices.try_send(notice) {
            tracing::error!(%error, "nobody is notified: changes come too fast");
        }
    }

    fn text(&self, cause: Cause) -> String {
        let tracker = match cause {
            Cause::Fault(FaultCause::Tracker(index)) => {
                usize::try_from(index).ok().and_then(|index| self.trackers.get(index))
            }
            _ => None,
        };
        tracker.cloned().unwrap_or_else(|| cause.to_string())
    }

    /// Returns its number.
    fn change(&self) -> u64 {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
        *self.changes.borrow()
    }
}

/// As `ip link` writes it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_told_as_split_brain_with_the_mac_of_who_makes_it() {
        let (notices, mut told) = mpsc::channel(4);
        let known = Known { name: "A".to_owned(), state: State::Master };
        let mut reporter = Reporter {
            instances: vec![known],
            groups: vec![],
            group_of: vec![None],
            interfaces: vec![],
            notifies: vec![],
            trackers: vec![],
            ways: vec![],
            notices,
            changes: watch::channel(3).0,
        };
        let claim =
            EventKind::Claimed { address: [10, 0, 0, 100].into(), mac: [2, 0, 0, 0, 0, 0x1f], priority: 90 };
        reporter.report(0, claim);
        let told = told.try_recv().unwrap();
        assert_eq!(
            (told.subject, told.from, told.what),
            (Subject::Instance(0), State::Master, What::SplitBrain)
        );
        assert_eq!((told.priority, told.change), (90, 3));
        assert_eq!(told.cause, "10.0.0.100 is claimed by 02:00:00:00:00:1f");
    }

    #[test]
    fn a_removed_instance_is_deleted_and_priorities_are_told_only_where_the_file_asks_for_it() {
        for asked in [false, true] {
            let (notices, mut told) = mpsc::channel(8);
            let mut reporter = Reporter {
                instances: vec![Known { name: "A".to_owned(), state: State::Backup }],
                groups: vec![],
                interfaces: vec!["eth0".to_owned()],
                group_of: vec![None],
                notifies: vec![Notifies { deleted: asked, priority_changes: asked }],
                ways: vec![],
                trackers: vec![],
                notices,
                changes: watch::channel(0).0,
            };
            let from = [10, 0, 0, 2].into();
            reporter.report(0, EventKind::Priority { state: State::Backup, priority: 90 });
            reporter.report(0, EventKind::LowerPriority { from, priority: 100 });
            let cause = Cause::Fault(FaultCause::Removed);
            let (from, to) = (State::Backup, State::Fault);
            reporter.report(0, EventKind::Transition { from, to, cause, priority: 100 });
            let told: Vec<_> = std::iter::from_fn(|| told.try_recv().ok()).map(|it| it.what).collect();
            let expected: &[_] = match asked {
                false => &[What::LowerPriority, What::Became(State::Fault)],
                true => &[What::Priority(State::Backup), What::LowerPriority, What::Deleted],
            };
            assert_eq!(told, expected);
        }
    }

    #[test]
    fn states_that_lost_events_told_of_are_told_afterwards_and_once() {
        let (notices, mut told) = mpsc::channel(8);
        let known = |name: &str| Known { name: name.to_owned(), state: State::Backup };
        let mut reporter = Reporter {
            instances: ["A", "B"].map(known).into(),
            groups: vec![Known { name: "VG".to_owned(), state: State::Backup }],
            group_of: vec![Some(0), Some(0)],
            interfaces: vec![],
            notifies: vec![],
            trackers: vec![],
            ways: vec![],
            notices,
            changes: watch::channel(0).0,
        };
        let board = Board::new(2);
        for index in 0..2 {
            board.set_state(index, State::Master);
        }
        reporter.catch_up(&board);
        assert!(told.try_recv().is_err(), "nothing was lost: what was not told yet is on its way");
        board.count_lost_event();
        reporter.catch_up(&board);
        let subjects: Vec<_> =
            std::iter::from_fn(|| told.try_recv().ok()).map(|it| (it.subject, it.from, it.what)).collect();
        let became = |subject| (subject, State::Backup, What::Became(State::Master));
        let all = [Subject::Instance(0), Subject::Instance(1), Subject::Group(0)];
        assert_eq!(subjects, all.map(became));
        assert!(*reporter.changes.borrow() > 0, "the host looks again");
        let late = EventKind::Transition {
            from: State::Backup,
            to: State::Master,
            cause: Cause::Started,
            priority: 1,
        };
        reporter.report(0, late);
        assert!(told.try_recv().is_err());
    }

    #[test]
    fn a_group_is_told_of_when_its_last_member_has_changed_and_after_it() {
        let known = |name: &str| Known { name: name.to_owned(), state: State::Init };
        let (notices, mut told) = mpsc::channel(64);
        let mut reporter = Reporter {
            instances: ["A", "B", "ALONE"].map(known).into(),
            groups: vec![known("VG")],
            interfaces: vec![],
            notifies: vec![Notifies { deleted: true, priority_changes: true }],
            group_of: vec![Some(0), Some(0), None],
            trackers: vec!["track_script chk".to_owned()],
            ways: vec![],
            notices,
            changes: watch::channel(0).0,
        };
        let fault = Cause::Fault(FaultCause::Tracker(0));
        for (index, from, to, cause) in [
            (0, State::Init, State::Backup, Cause::Started),
            (2, State::Init, State::Backup, Cause::Started),
            (1, State::Init, State::Backup, Cause::Started),
            (1, State::Backup, State::Fault, fault),
            (0, State::Backup, State::Fault, Cause::Fault(FaultCause::Group)),
            (0, State::Fault, State::Init, Cause::Stopped),
            (1, State::Fault, State::Init, Cause::Stopped),
        ] {
            reporter.report(index, EventKind::Transition { from, to, cause, priority: 100 });
        }
        let told: Vec<_> = std::iter::from_fn(|| told.try_recv().ok()).collect();
        let seen: Vec<_> =
            told.iter().map(|it| (it.subject, it.from, it.what, it.change, it.cause.as_str())).collect();
        let [a, b, alone] = [0, 1, 2].map(Subject::Instance);
        let group = Subject::Group(0);
        assert_eq!(
            seen,
            [
                (a, State::Init, State::Backup, 1, "started"),
                (alone, State::Init, State::Backup, 2, "started"),
                (b, State::Init, State::Backup, 3, "started"),
                (group, State::Init, State::Backup, 3, "started"),
                (b, State::Backup, State::Fault, 4, "track_script chk"),
                (a, State::Backup, State::Fault, 5, "the sync group is in FAULT"),
                (group, State::Backup, State::Fault, 5, "the sync group is in FAULT"),
                (a, State::Fault, State::Init, 6, "stopped"),
                (b, State::Fault, State::Init, 7, "stopped"),
                (group, State::Fault, State::Init, 7, "stopped"),
            ]
            .map(|(subject, from, to, change, cause)| (
                subject,
                from,
                What::Became(to),
                change,
                cause
            ))
        );
    }
}
