//! Who comes, who goes, who waits; times in seconds after an arbitrary start.

use Occupied::{Free, Remains, Requests};

use super::*;

struct Clock(Instant);

impl Clock {
    fn at(&self, seconds: u64) -> Instant {
        self.0 + Duration::from_secs(100 + seconds)
    }

    fn loaded(&self, since: u64, used: u64, occupied: Occupied) -> Candidate {
        let (since, used) = (self.at(since), self.at(used));
        Candidate { bytes: 10, life: Life::Loaded(Stay { since, used, occupied, leaving: false }) }
    }

    fn leaving(&self, since: u64, used: u64, occupied: Occupied) -> Candidate {
        let (since, used) = (self.at(since), self.at(used));
        Candidate { bytes: 10, life: Life::Loaded(Stay { since, used, occupied, leaving: true }) }
    }

    fn at_start(&self, since: u64) -> Candidate {
        Candidate { bytes: 10, life: Life::WantedAtStart { since: self.at(since) } }
    }

    fn wanted(&self, since: u64) -> Candidate {
        Candidate { bytes: 10, life: Life::Wanted { since: self.at(since) } }
    }
}

const ABSENT: Candidate = Candidate { bytes: 10, life: Life::Absent };
const NO_LIMITS: Limits = Limits { max_models: None, max_bytes: None, idle_unload: None, turn: Duration::from_secs(5) };
const TWO: Limits = Limits { max_models: Some(2), ..NO_LIMITS };
const MINUTE: Limits = Limits { idle_unload: Some(Duration::from_mins(1)), ..NO_LIMITS };

fn clock() -> Clock {
    Clock(Instant::now())
}

fn wait(until: Option<Instant>, for_room: bool) -> Step {
    Step::Wait(Waiting { until, for_room })
}

#[test]
fn the_start_loads_in_order_until_there_is_no_room() {
    let c = clock();
    let now = c.at(1);
    let [first, second, third] = [c.at_start(0), c.at_start(1), c.at_start(2)];
    assert_eq!(next(&[third, first, second], &TWO, now), Step::Load(1));
    assert_eq!(next(&[first, second, third], &TWO, now), Step::Load(0));
    let one = c.loaded(0, 0, Free);
    assert_eq!(next(&[one, second, third], &TWO, now), Step::Load(1));
    assert_eq!(next(&[one, one, third], &TWO, now), Step::Shelve(2));
    assert_eq!(next(&[one, one, third], &NO_LIMITS, now), Step::Load(2));
    let bytes = Limits { max_bytes: Some(25), ..NO_LIMITS };
    assert_eq!(next(&[one, second, third], &bytes, now), Step::Load(1));
    assert_eq!(next(&[one, one, third], &bytes, now), Step::Shelve(2));
    assert_eq!(next(&[one, one, ABSENT], &TWO, now), wait(None, false));
}

#[test]
fn requests_come_before_the_start_and_in_their_own_order() {
    let c = clock();
    assert_eq!(next(&[c.at_start(0), c.wanted(3), c.wanted(2)], &TWO, c.at(4)), Step::Load(2));
    assert_eq!(next(&[c.at_start(0), c.wanted(3), ABSENT], &TWO, c.at(4)), Step::Load(1));
}

#[test]
fn the_least_recently_used_free_model_makes_room() {
    let c = clock();
    let now = c.at(20);
    let models = [c.loaded(0, 9, Free), c.loaded(1, 8, Free), c.wanted(19)];
    assert_eq!(next(&models, &TWO, now), Step::Unload(1, Why::Room));
    // A model in use is never unloaded, however long ago its last request ended.
    let models = [c.loaded(0, 9, Free), c.loaded(1, 8, Requests), c.wanted(19)];
    assert_eq!(next(&models, &TWO, now), Step::Unload(0, Why::Room));
    let models = [c.loaded(0, 9, Remains), c.loaded(1, 8, Requests), c.wanted(19)];
    assert_eq!(next(&models, &TWO, now), wait(Some(now + REMAINS), true));
    // A larger newcomer takes as many places as it needs.
    let big = Candidate { bytes: 20, ..c.wanted(19) };
    let bytes = Limits { max_bytes: Some(25), ..NO_LIMITS };
    assert_eq!(next(&[c.loaded(0, 9, Free), c.loaded(1, 8, Free), big], &bytes, now), Step::Unload(1, Why::Room));
    assert_eq!(next(&[c.loaded(0, 9, Free), ABSENT, big], &bytes, now), Step::Unload(0, Why::Room));
    assert_eq!(next(&[ABSENT, ABSENT, big], &bytes, now), Step::Load(2));
}

#[test]
fn busy_models_take_turns() {
    let c = clock();
    let busy = [c.loaded(0, 9, Requests), c.loaded(2, 9, Requests), c.wanted(10)];
    // Nobody has waited for a turn's length yet.
    assert_eq!(next(&busy, &TWO, c.at(11)), wait(Some(c.at(15)), true));
    assert_eq!(next(&busy, &TWO, c.at(15)), Step::Empty(0));
    // While one leaves, no other has to.
    let leaving = [c.leaving(0, 9, Requests), c.loaded(2, 9, Requests), c.wanted(10)];
    assert_eq!(next(&leaving, &TWO, c.at(30)), wait(None, true));
    let left = [c.leaving(0, 20, Free), c.loaded(2, 9, Requests), c.wanted(10)];
    assert_eq!(next(&left, &TWO, c.at(30)), Step::Unload(0, Why::Room));
    // A newcomer keeps its place for its turn, whoever waits and for however long.
    let young = [c.loaded(40, 41, Requests), c.loaded(42, 43, Requests), c.wanted(10)];
    assert_eq!(next(&young, &TWO, c.at(43)), wait(Some(c.at(45)), true));
    // If whoever needed the place has gone, it is kept.
    let alone = [c.leaving(0, 9, Requests), c.loaded(2, 9, Requests), ABSENT];
    assert_eq!(next(&alone, &TWO, c.at(30)), Step::Keep(0));
}

#[test]
fn idle_models_leave_after_their_time() {
    let c = clock();
    let models = [c.loaded(0, 10, Free), c.loaded(0, 20, Free), ABSENT];
    assert_eq!(next(&models, &MINUTE, c.at(69)), wait(Some(c.at(70)), false));
    assert_eq!(next(&models, &MINUTE, c.at(70)), Step::Unload(0, Why::Idle));
    assert_eq!(next(&models, &NO_LIMITS, c.at(1000)), wait(None, false));
    let busy = [c.loaded(0, 10, Requests)];
    assert_eq!(next(&busy, &MINUTE, c.at(1000)), wait(Some(c.at(1060)), false));
}

#[test]
fn weights_that_turned_out_too_large_push_another_out() {
    let c = clock();
    let bytes = Limits { max_bytes: Some(19), ..NO_LIMITS };
    let models = [c.loaded(0, 10, Free), c.loaded(11, 11, Free)];
    assert_eq!(next(&models, &bytes, c.at(12)), Step::Unload(0, Why::Room));
    assert_eq!(next(&models[..1], &bytes, c.at(12)), wait(None, false));
}
