//! What must the members of a sync group do so that they move together?

use super::State;

/// How a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub state: State,
    /// A backup that would take over if it were alone.
    pub wants_master: bool,
    pub own: Own,
}

/// Whether a member could take part if it were alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    Ready,
    /// For a first result of its trackers.
    Waiting,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    TakeOver,
    StepDown,
    Fault,
    Recover,
}

/// The next member that has to be told something; to be asked again when it has obeyed. Every order moves its
/// member on, and after at most as many orders as there are states for all members there is nothing left to tell.
pub fn next(members: impl Iterator<Item = Member> + Clone) -> Option<(usize, Order)> {
    let first = |what: &dyn Fn(&Member) -> bool| members.clone().position(|member| what(&member));
    // One in FAULT takes all.
    if members.clone().any(|member| member.has_failed()) {
        let others =
            first(&|it| it.state != State::Fault && !(it.state == State::Init && it.own == Own::Waiting));
        return others.map(|index| (index, Order::Fault));
    }
    if let Some(index) = first(&|it| matches!(it.state, State::Fault | State::Init) && it.own == Own::Ready) {
        return Some((index, Order::Recover));
    }
    let together = members.clone().all(|it| it.state == State::Master || it.wants_master);
    match together {
        true => first(&|it| it.state != State::Master).map(|index| (index, Order::TakeOver)),
        false => first(&|it| it.state == State::Master).map(|index| (index, Order::StepDown)),
    }
}

impl Member {
    fn has_failed(&self) -> bool {
        match self.own {
            Own::Ready => false,
            // It had failed before it had to wait.
            Own::Waiting => self.state == State::Fault,
            Own::Failed => true,
        }
    }
}

#[cfg(test)]
mod tests;
