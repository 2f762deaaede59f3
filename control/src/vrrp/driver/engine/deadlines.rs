//! Which of thousands of machines is to be woken next?

use crate::vrrp::Monotonic;

/// The deadlines of all nodes, as a tournament: each place holds the earlier of the two below it. A change costs as many
/// steps as the tree is high, a look at the earliest one none, and nothing is allocated after the start.
pub(super) struct Deadlines {
    /// The root is at 1; those of the nodes follow each other from `leaves` on.
    tree: Box<[Monotonic]>,
    leaves: usize,
}

pub(super) const NEVER: Monotonic = Monotonic::from_nanos(u64::MAX);

impl Deadlines {
    pub(super) fn new(nodes: usize) -> Self {
        let leaves = nodes.next_power_of_two();
        Self { tree: vec![NEVER; 2 * leaves].into(), leaves }
    }

    pub(super) fn set(&mut self, node: usize, at: Monotonic) {
        let mut place = self.leaves + node;
        self.tree[place] = at;
        while place > 1 {
            place /= 2;
            self.tree[place] = self.tree[2 * place].min(self.tree[2 * place + 1]);
        }
    }

    pub(super) fn earliest(&self) -> Monotonic {
        self.tree[1]
    }

    /// The node with the earliest deadline, if that has come.
    pub(super) fn due(&self, now: Monotonic) -> Option<usize> {
        if self.earliest() > now {
            return None;
        }
        let mut place = 1;
        while place < self.leaves {
            place *= 2;
            place += usize::from(self.tree[place + 1] < self.tree[place]);
        }
        Some(place - self.leaves)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn nodes_are_due_in_the_order_of_their_deadlines_whatever_moves_meanwhile() {
        for count in [0, 1, 2, 3, 255, 256, 4096] {
            let mut deadlines = Deadlines::new(count);
            assert_eq!(deadlines.due(Monotonic::from_nanos(u64::MAX - 1)), None);
            // All different: the multiplier has no divisor in common with the modulus.
            let at =
                |node: usize, round: u64| Monotonic::from_nanos(1 + (node as u64 * 7919 + round) % 99_991);
            for round in [0, 5000] {
                (0..count).for_each(|node| deadlines.set(node, at(node, round)));
            }
            let mut expected: Vec<_> = (0..count).map(|node| (at(node, 5000), node)).collect();
            expected.sort_unstable();
            for (at, node) in expected {
                assert_eq!(deadlines.earliest(), at);
                assert_eq!(deadlines.due(at.earlier_by(Duration::from_nanos(1))), None);
                assert_eq!(deadlines.due(at), Some(node), "of {count}");
                deadlines.set(node, NEVER);
            }
            assert_eq!(deadlines.earliest(), NEVER);
        }
    }
}
