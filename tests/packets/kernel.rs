//! Whether kernels take the program: the running one, and older ones by two of their rules that the compiler does not know.
//! `cargo xtask test --kernel` asks those themselves. And what of it outlasts a daemon.

use std::collections::{BTreeMap, BTreeSet};

use aya_obj::{Object, generated::bpf_insn};

use crate::*;

/// What the stack frames of a chain of calls may take.
const STACK: usize = 512;
/// Of which Linux 6.1 counts each as a multiple of this, an empty one too.
const FRAME: usize = 32;

#[test]
fn the_kernel_takes_the_program() {
    let release = nix::sys::utsname::uname().unwrap().release().to_string_lossy().into_owned();
    for devices in ["cards", "veth devices"] {
        let start = thread_time();
        let loaded = if devices == "cards" { Director::load() } else { Director::load_for_veth() };
        let Some(mut director) = loaded.map(master) else { return };
        let took = thread_time() - start;
        let info = director.program_mut().info().unwrap();
        // The kernel counts these from 5.16 on.
        let verified =
            info.verified_instruction_count().map_or("?".to_owned(), |instructions| instructions.to_string());
        println!(
            "Linux {release}, for {devices}: loaded in {took:?}; {verified} instructions verified, {} bytes of machine code",
            info.size_jitted()
        );
        assert_eq!(director.run(&tcp(VIP, WEB)).outcome, Outcome::Forwarded);
    }
}

#[test]
fn the_stack_frames_of_all_chains_of_calls_fit_older_kernels() {
    let program = Program::read();
    let depths: BTreeMap<usize, usize> =
        program.functions.iter().map(|function| (*function, program.depth(*function))).collect();
    let deepest = program.deepest(&depths, 0);
    assert!(
        deepest <= STACK,
        "a chain of calls takes {deepest} bytes; frames by first instruction: {depths:?}"
    );
}

#[test]
fn no_loop_is_entered_again_by_falling_into_its_head() {
    let program = Program::read();
    for function in &program.functions {
        if let Some((from, to)) = program.fallen_into(*function) {
            panic!(
                "instruction {from} falls into {to}, the head of the loop that it is in: Linux 6.1 refuses that"
            );
        }
    }
}

#[test]
fn whatever_packets_depend_on_outlasts_the_daemon() {
    // When something was last told, events for whoever reads them, pieces of packets on their way, one frame's mark, and
    // the kernel's end of a detour.
    const PASSING: [&str; 8] =
        ["AYA_LOGS", "CLAIMED", "CLAIMS", "FRAGMENTS", "FRAGMENTS6", "LOGGED", "TAKEN_UP", "TO_KERNEL"];
    let object = Object::parse(control::dataplane::OBJECT).unwrap();
    // Constants have a dot in front.
    let maps = object.maps.keys().map(String::as_str).filter(|name| !name.starts_with('.'));
    let forgotten: Vec<_> =
        maps.filter(|name| !PASSING.contains(name) && !control::dataplane::PINNED.contains(name)).collect();
    assert_eq!(forgotten, [] as [&str; 0], "neither pinned nor of passing use");
}

fn thread_time() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap())
}

/// The program as a kernel gets it: one piece of code with all functions.
struct Program {
    code: Vec<bpf_insn>,
    /// First instruction of each.
    functions: BTreeSet<usize>,
}

const STACK_POINTER: u8 = 10;
const WIDE: u8 = 0x18;
const EXIT: u8 = 0x95;
const CALL: u8 = 0x85;
/// Source register of a call of our own.
const OWN: u8 = 1;
const GOTO: u8 = 0x05;
/// The same in 64 bits and in 32.
const JUMPS: [u8; 2] = [0x05, 0x06];
const CLASS: u8 = 0x07;
const ADD_TO_COPY: u8 = 0x07;
const COPY: u8 = 0xbf;

impl Program {
    fn read() -> Self {
        let mut object = Object::parse(control::dataplane::OBJECT).unwrap();
        let sections = object.functions.keys().map(|(section, _)| *section).collect();
        object.relocate_calls(&sections).unwrap();
        let key = object.programs[maps::PROGRAM].function_key();
        let mut program =
            Self { code: object.functions[&key].instructions.clone(), functions: BTreeSet::from([0]) };
        let all = 0..program.code.len();
        program.functions.extend(all.filter_map(|at| program.callee(at)).collect::<Vec<_>>());
        program
    }

    fn callee(&self, at: usize) -> Option<usize> {
        let call = &self.code[at];
        let is_own = call.code == CALL && call.src_reg() == OWN;
        is_own.then(|| at.checked_add_signed(call.imm as isize + 1).unwrap())
    }

    fn range(&self, function: usize) -> std::ops::Range<usize> {
        let end = self.functions.range(function + 1..).next();
        function..end.copied().unwrap_or(self.code.len())
    }

    /// How far below its frame pointer a function reads, writes or points.
    fn depth(&self, function: usize) -> usize {
        let mut depth = 0;
        let mut copies = [false; 11];
        for at in self.range(function) {
            let insn = &self.code[at];
            let (to, from) = (usize::from(insn.dst_reg()), usize::from(insn.src_reg()));
            let through_pointer = match insn.code & CLASS {
                // Loads, then both kinds of stores.
                1 => insn.src_reg() == STACK_POINTER,
                2 | 3 => insn.dst_reg() == STACK_POINTER,
                _ => false,
            };
            if through_pointer {
                depth = depth.max(usize::from(insn.off.unsigned_abs()));
            }
            if insn.code == ADD_TO_COPY && copies[to] && insn.imm < 0 {
                depth = depth.max(insn.imm.unsigned_abs() as usize);
            }
            copies[to] = insn.code == COPY && from == usize::from(STACK_POINTER);
        }
        depth
    }

    fn deepest(&self, depths: &BTreeMap<usize, usize>, function: usize) -> usize {
        let callees: BTreeSet<_> = self.range(function).filter_map(|at| self.callee(at)).collect();
        let below = callees.into_iter().map(|callee| self.deepest(depths, callee)).max();
        depths[&function].max(1).next_multiple_of(FRAME) + below.unwrap_or(0)
    }

    /// The way of the kernel's own first look: depth first, what comes next before what is jumped to. An instruction that is
    /// no jump must not lead to one that the look has come through.
    fn fallen_into(&self, function: usize) -> Option<(usize, usize)> {
        #[derive(Clone, Copy, PartialEq)]
        enum State {
            Unknown,
            OnTheWay,
            Done,
        }
        let mut states = vec![State::Unknown; self.code.len()];
        states[function] = State::OnTheWay;
        let mut way = vec![(function, self.successors(function))];
        while let Some((at, left)) = way.last_mut() {
            let at = *at;
            let Some((next, jumps)) = left.pop() else {
                states[at] = State::Done;
                way.pop();
                continue;
            };
            match states[next] {
                State::Unknown => {
                    states[next] = State::OnTheWay;
                    way.push((next, self.successors(next)));
                }
                State::OnTheWay if !jumps => return Some((at, next)),
                State::OnTheWay | State::Done => {}
            }
        }
        None
    }

    /// Where it goes on, and whether by a jump; the last one comes first.
    fn successors(&self, at: usize) -> Vec<(usize, bool)> {
        let insn = &self.code[at];
        let target = || at.checked_add_signed(isize::from(insn.off) + 1).unwrap();
        match insn.code {
            EXIT => vec![],
            GOTO => vec![(target(), true)],
            CALL => vec![(at + 1, false)],
            WIDE => vec![(at + 2, false)],
            code if JUMPS.contains(&(code & CLASS)) => vec![(target(), true), (at + 1, true)],
            _ => vec![(at + 1, false)],
        }
    }
}
