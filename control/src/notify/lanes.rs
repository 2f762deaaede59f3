//! Which script may start now? One at a time for each instance, in order, and not too many together.

use std::collections::VecDeque;

/// What waits and what runs.
pub struct Lanes<W> {
    lanes: Vec<Lane<W>>,
    /// Where the search for work goes on, so that nobody is passed over for long.
    turn: usize,
    running: usize,
    most_running: usize,
    most_waiting: usize,
}

pub struct Job<W> {
    /// There is nothing to wait for any more: it starts beside what runs, and what waits is void.
    pub last: bool,
    /// Waits for what these lanes had then: [`Lanes::ends`].
    pub after: Vec<Place>,
    pub work: W,
}

/// Names a job that was started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    lane: usize,
    number: u64,
}

struct Lane<W> {
    /// Each with its number.
    waiting: VecDeque<(u64, Job<W>)>,
    /// The job that the others wait for, and whether it is a last one.
    current: Option<(u64, bool)>,
    pushed: u64,
}

impl<W> Lanes<W> {
    pub fn new(lanes: usize, most_running: usize, most_waiting: usize) -> Self {
        let lane = || Lane { waiting: VecDeque::new(), current: None, pushed: 0 };
        let lanes = std::iter::repeat_with(lane).take(lanes).collect();
        Self { lanes, turn: 0, running: 0, most_running, most_waiting }
    }

    /// Returns what had to give way: the oldest, since the latest state is what counts.
    pub fn push(&mut self, lane: usize, job: Job<W>) -> Option<W> {
        let lane = self.lanes.get_mut(lane)?;
        if job.last {
            lane.waiting.retain(|(_, job)| job.last);
            lane.current = lane.current.filter(|(_, last)| *last);
        }
        lane.pushed += 1;
        lane.waiting.push_back((lane.pushed, job));
        let crowded = lane.waiting.len() > self.most_waiting;
        crowded.then(|| lane.waiting.pop_front()).flatten().map(|(_, job)| job.work)
    }

    /// What each of these lanes has to have done before a later job.
    pub fn ends(&self, lanes: &[usize]) -> Vec<Place> {
        let end = |lane: usize| Some(Place { lane, number: self.lanes.get(lane)?.pushed });
        lanes.iter().filter_map(|lane| end(*lane)).collect()
    }

    /// The next job to start.
    pub fn next(&mut self) -> Option<(Place, W)> {
        if self.running >= self.most_running {
            return None;
        }
        let count = self.lanes.len();
        let index = (0..count).map(|step| (self.turn + step) % count).find(|index| {
            let lane = self.lanes.get(*index).filter(|lane| lane.current.is_none());
            let job = lane.and_then(|lane| lane.waiting.front());
            job.is_some_and(|(_, job)| job.after.iter().all(|place| self.has_done(*place)))
        })?;
        let lane = self.lanes.get_mut(index)?;
        let (number, job) = lane.waiting.pop_front()?;
        lane.current = Some((number, job.last));
        self.turn = index + 1;
        self.running += 1;
        Some((Place { lane: index, number }, job.work))
    }

    /// The job and all before it.
    fn has_done(&self, place: Place) -> bool {
        let Some(lane) = self.lanes.get(place.lane) else { return true };
        let first =
            lane.current.map(|(number, _)| number).or(lane.waiting.front().map(|(number, _)| *number));
        first.is_none_or(|first| first > place.number)
    }

    pub fn done(&mut self, place: Place) {
        self.running = self.running.saturating_sub(1);
        if let Some(lane) = self.lanes.get_mut(place.lane) {
            lane.current = lane.current.filter(|(number, _)| *number != place.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(work: u32) -> Job<u32> {
        Job { last: false, after: vec![], work }
    }

    fn started(lanes: &mut Lanes<u32>) -> (Vec<Place>, Vec<u32>) {
        std::iter::from_fn(|| lanes.next()).unzip()
    }

    #[test]
    fn one_lane_runs_in_order_and_one_at_a_time() {
        let mut lanes = Lanes::new(2, 9, 9);
        for (lane, work) in [(0, 1), (0, 2), (1, 3)] {
            assert_eq!(lanes.push(lane, job(work)), None);
        }
        let (places, work) = started(&mut lanes);
        assert_eq!(work, [1, 3]);
        lanes.done(places[1]);
        assert!(started(&mut lanes).1.is_empty(), "the other lane's end is not this one's");
        lanes.done(places[0]);
        assert_eq!(started(&mut lanes).1, [2]);
    }

    #[test]
    fn no_more_run_than_may_and_every_lane_has_its_turn() {
        let mut lanes = Lanes::new(3, 1, 9);
        for lane in 0..3 {
            for work in 0..2 {
                lanes.push(lane, job(10 * lane as u32 + work));
            }
        }
        let mut order = Vec::new();
        while let Some((place, work)) = lanes.next() {
            assert!(lanes.next().is_none());
            order.push(work);
            lanes.done(place);
        }
        assert_eq!(order, [0, 10, 20, 1, 11, 21]);
    }

    #[test]
    fn what_comes_after_other_lanes_waits_for_what_they_had() {
        let mut lanes = Lanes::new(3, 9, 9);
        lanes.push(0, job(1));
        lanes.push(1, job(2));
        let after = lanes.ends(&[0, 1]);
        lanes.push(2, Job { after, ..job(3) });
        lanes.push(1, job(4));
        let (places, work) = started(&mut lanes);
        assert_eq!(work, [1, 2]);
        lanes.done(places[0]);
        assert!(started(&mut lanes).1.is_empty());
        lanes.done(places[1]);
        assert_eq!(started(&mut lanes).1, [3, 4], "4 came later");
    }

    #[test]
    fn the_oldest_gives_way() {
        let mut lanes = Lanes::new(1, 1, 2);
        assert_eq!([1, 2, 3, 4].map(|work| lanes.push(0, job(work))), [None, None, Some(1), Some(2)]);
        assert_eq!(started(&mut lanes).1, [3]);
    }

    #[test]
    fn the_last_waits_for_nobody_but_the_last_before() {
        let mut lanes = Lanes::new(1, 9, 9);
        lanes.push(0, job(1));
        lanes.push(0, job(2));
        let (first, _) = started(&mut lanes);
        for work in [3, 4] {
            lanes.push(0, Job { last: true, after: vec![], work });
        }
        let (places, work) = started(&mut lanes);
        assert_eq!(work, [3], "2 is void, 1 still runs");
        lanes.done(first[0]);
        assert!(started(&mut lanes).1.is_empty());
        lanes.done(places[0]);
        assert_eq!(started(&mut lanes).1, [4]);
    }
}
