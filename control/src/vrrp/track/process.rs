//! Do enough processes of a name run?
//!
//! Asked of /proc. The kernel's own news of processes (the proc connector) come to the host's network namespace
//! only, and nobody in another one hears them.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::fd::{FromRawFd as _, OwnedFd},
    path::Path,
    time::Duration,
};

use futures_util::future::select_all;
use nix::libc;
use tokio::{
    io::unix::AsyncFd,
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{Debounce, Finding, watch::News};
use crate::{
    config::model::{ParamMatch, TrackProcess},
    vrrp::driver::clock,
};

/// A process that starts is found after this at the latest. One that ends is told of at once.
const SCAN: Duration = Duration::from_millis(500);
/// However short-lived processes are, /proc is read no more often than this.
const PACE: Duration = Duration::from_millis(50);
/// A read of /proc that takes longer hangs: the command line of a process whose memory is locked waits for the lock.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many are told of at once; of the others the scan knows.
const TOLD: usize = 256;
/// Enough to compare with, whatever a process shows.
const LONGEST: u64 = 64 << 10;
/// The kernel keeps so much of a name (TASK_COMM_LEN).
const COMM: usize = 15;

/// Tells whether they run, and each change of that.
pub async fn follow(tracker: usize, config: TrackProcess, known: Finding, results: mpsc::Sender<News>) {
    let name = config.name.clone();
    let wanted = config.clone();
    let look = move || running(Path::new("/proc"), &wanted);
    let mut debounce = Debounce::new(config.fork_delay, config.terminate_delay, known);
    loop {
        // While nothing can be seen, what was seen last holds: a process that hangs has not ended, and where this
        // host is out of descriptors or memory none has.
        let Ok(found) = patiently(&name, PATIENCE, look.clone()).await else {
            sleep(SCAN).await;
            continue;
        };
        let before = debounce.finding();
        let is_up = u32::try_from(found.len()).is_ok_and(|count| config.quorum.contains(&count));
        let finding = debounce.on_look(is_up, clock());
        if finding != before {
            let cause = format!("{} processes", found.len());
            if results.send(News { tracker, finding, cause }).await.is_err() {
                return;
            }
        }
        let pause = debounce.left(clock()).map_or(SCAN, |left| left.min(SCAN));
        end_of_one(&found, pause).await;
    }
}

/// Waits until one of them ends, but no longer than `most` and no shorter than the pace.
async fn end_of_one(found: &[i32], most: Duration) {
    let ends: Vec<_> = found.iter().take(TOLD).filter_map(|pid| pidfd(*pid).ok()).collect();
    let ended = async {
        match ends.is_empty() {
            true => std::future::pending().await,
            false => drop(select_all(ends.iter().map(|end| Box::pin(end.readable()))).await),
        }
        sleep(PACE).await;
    };
    let _ = timeout(most, ended).await;
}

/// Complains while `look` hangs. There is never more than one thread that does.
async fn patiently<T: Send + 'static>(
    name: &str,
    patience: Duration,
    look: impl Fn() -> T + Clone + Send + 'static,
) -> T {
    loop {
        let mut looking = tokio::task::spawn_blocking(look.clone());
        let looked = match timeout(patience, &mut looking).await {
            Ok(looked) => looked,
            Err(_) => {
                tracing::warn!(
                    tracker = name,
                    ?patience,
                    "/proc does not answer: what was known of processes holds"
                );
                let looked = looking.await;
                tracing::info!(tracker = name, "/proc answers again");
                looked
            }
        };
        match looked {
            Ok(found) => return found,
            Err(_) => sleep(PACE).await,
        }
    }
}

/// Readable when the process has ended.
fn pidfd(pid: i32) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the system call takes two integers and touches no memory of ours.
    let descriptor = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
    let Ok(descriptor @ 0..) = i32::try_from(descriptor) else { return Err(io::Error::last_os_error()) };
    // SAFETY: the kernel has just given it to us, and nobody else knows of it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    // SAFETY: the descriptor is owned by the AsyncFd, which closes it after it has been deregistered.
    Ok(unsafe { AsyncFd::register(descriptor) }?)
}

/// Numbers of the processes that fit.
fn running(proc: &Path, wanted: &TrackProcess) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(proc) {
        Err(error) if has_ended(&error) => return Ok(found),
        entries => entries?,
    };
    for entry in entries {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        match fits(&proc.join(format!("{pid}")), wanted) {
            Ok(true) => found.push(pid),
            Ok(false) => {}
            // One that ends while it is looked at is none.
            Err(error) if has_ended(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn has_ended(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

fn fits(process: &Path, wanted: &TrackProcess) -> io::Result<bool> {
    let stat = content(&process.join("stat"))?;
    let Some((comm, state)) = comm_and_state(&stat) else { return Ok(false) };
    let name = wanted.process.as_bytes();
    let is_dead = matches!(state, b'Z' | b'X');
    if is_dead || (!wanted.full_command && comm != name.get(..COMM).unwrap_or(name)) {
        return Ok(false);
    }
    if !wanted.full_command && wanted.parameters.is_none() {
        return Ok(true);
    }
    let command = content(&process.join("cmdline"))?;
    Ok(is_command(&command, wanted))
}

fn content(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Of `PID (COMM) STATE ..`: there may be anything within the outer brackets.
fn comm_and_state(stat: &[u8]) -> Option<(&[u8], u8)> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    Some((stat.get(open + 1..close)?, *stat.get(close + 2)?))
}

/// `command`: each word ends with a zero.
fn is_command(command: &[u8], wanted: &TrackProcess) -> bool {
    let end = command.iter().position(|byte| *byte == 0).unwrap_or(command.len());
    let (name, rest) = command.split_at(end);
    if wanted.full_command && name != wanted.process.as_bytes() {
        return false;
    }
    let Some((parameters, how)) = &wanted.parameters else { return true };
    let mut expected = Vec::new();
    for parameter in parameters {
        expected.extend_from_slice(parameter.as_bytes());
        expected.push(0);
    }
    let rest = rest.get(1..).unwrap_or_default();
    match how {
        ParamMatch::Exact => rest == expected,
        ParamMatch::Partial => rest.starts_with(&expected),
        // The last one may be longer.
        ParamMatch::Initial => {
            rest.starts_with(expected.get(..expected.len().saturating_sub(1)).unwrap_or(&[]))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc as std_mpsc, time::Instant};

    use tokio::process::Command;

    use super::*;

    fn wanted(process: &str) -> TrackProcess {
        TrackProcess {
            name: "p".to_owned(),
            process: process.to_owned(),
            parameters: None,
            full_command: false,
            quorum: 1..=u32::MAX,
            fork_delay: Duration::ZERO,
            terminate_delay: Duration::ZERO,
        }
    }

    #[test]
    fn a_name_may_hold_brackets_and_blanks() {
        let read = |stat: &'static str| comm_and_state(stat.as_bytes());
        assert_eq!(read("7 (a b) R 1"), Some((&b"a b"[..], b'R')));
        assert_eq!(read("7 (x) Z (y) S 1 2"), Some((&b"x) Z (y"[..], b'S')));
        for broken in ["", "7", "7 (", "7 (x)", "7 )x( S", "7 (x) "] {
            assert_eq!(read(broken), None, "{broken}");
        }
    }

    #[test]
    fn parameters_are_compared_as_param_match_says() {
        let command = b"/usr/sbin/haproxy\0-W\0-f\0/etc/haproxy.cfg\0";
        let is = |how, words: &[&str]| {
            let parameters = words.iter().map(|word| (*word).to_owned()).collect();
            is_command(command, &TrackProcess { parameters: Some((parameters, how)), ..wanted("haproxy") })
        };
        use ParamMatch::{Exact, Initial, Partial};
        assert!(is(Exact, &["-W", "-f", "/etc/haproxy.cfg"]));
        assert!(!is(Exact, &["-W", "-f"]) && !is(Exact, &[]));
        assert!(is(Partial, &["-W", "-f"]));
        assert!(!is(Partial, &["-W", "-"]) && !is(Partial, &["-f"]));
        assert!(is(Initial, &["-W", "-f", "/etc/ha"]) && !is(Initial, &["-W", "/etc"]));
        let whole = |name: &str| TrackProcess { full_command: true, ..wanted(name) };
        assert!(is_command(command, &whole("/usr/sbin/haproxy")) && !is_command(command, &whole("haproxy")));
        assert!(!is_command(b"", &whole("haproxy")), "a thread of the kernel");
    }

    #[test]
    fn a_long_name_is_compared_as_far_as_the_kernel_keeps_it() {
        let proc = std::env::temp_dir().join(format!("lvsd-proc-{}", std::process::id()));
        for (pid, stat) in [(11, "11 (fifteen-letters) S 1"), (12, "12 (fifteen-letters) Z 1"), (13, "13 (")]
        {
            fs::create_dir_all(proc.join(pid.to_string())).unwrap();
            fs::write(proc.join(format!("{pid}/stat")), stat).unwrap();
        }
        fs::create_dir_all(proc.join("14")).unwrap();
        fs::create_dir_all(proc.join("sys")).unwrap();
        assert_eq!(running(&proc, &wanted("fifteen-letters-and-more")).unwrap(), [11], "not the dead one");
        assert_eq!(running(&proc, &wanted("fifteen-letter")).unwrap(), [0; 0]);
        fs::remove_dir_all(&proc).unwrap();
        assert_eq!(running(&proc, &wanted("x")).unwrap(), [0; 0]);
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "the pace is one of real time")]
    async fn the_end_of_a_process_is_told_of_long_before_the_next_look_and_not_sooner_than_the_pace() {
        let mut child = Command::new("true").spawn().unwrap();
        let found = [child.id().unwrap().try_into().unwrap()];
        // Not reaped meanwhile: each look would find the end anew.
        for _ in 0..2 {
            let start = Instant::now();
            let told = timeout(Duration::from_secs(60), end_of_one(&found, Duration::from_secs(3600))).await;
            assert_eq!(told, Ok(()));
            assert!(start.elapsed() >= PACE);
        }
        child.wait().await.unwrap();
    }

    #[tokio::test]
    async fn a_look_that_hangs_is_waited_for_by_one_thread_and_its_result_counts() {
        let (answer, answers) = std_mpsc::channel();
        let answers = std::sync::Arc::new(std::sync::Mutex::new(answers));
        let (began, mut begun) = mpsc::channel(8);
        let look = move || {
            began.blocking_send(()).unwrap();
            answers.lock().unwrap().recv().unwrap()
        };
        let looking = tokio::spawn(patiently("p", Duration::from_millis(1), look));
        begun.recv().await.unwrap();
        sleep(Duration::from_millis(50)).await;
        assert!(begun.try_recv().is_err() && !looking.is_finished());
        answer.send(7).unwrap();
        assert_eq!(looking.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_process_is_followed_from_its_start_to_its_end() {
        let (sender, mut news) = mpsc::channel(4);
        // No other process has these parameters.
        let seconds = format!("{}", 1_000_000 + std::process::id());
        let config =
            TrackProcess { parameters: Some((vec![seconds.clone()], ParamMatch::Exact)), ..wanted("sleep") };
        let task = tokio::spawn(follow(5, config, Finding::Untried, sender));
        let mut next = async || timeout(Duration::from_secs(20), news.recv()).await.unwrap().unwrap();
        let first = next().await;
        assert_eq!((first.tracker, first.finding, first.cause.as_str()), (5, Finding::Down, "0 processes"));
        let mut sleep = Command::new("sleep").arg(&seconds).kill_on_drop(true).spawn().unwrap();
        assert_eq!(next().await.finding, Finding::Up);
        // Not reaped: dead all the same.
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(sleep.id().unwrap().try_into().unwrap()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        assert_eq!(next().await.finding, Finding::Down);
        sleep.wait().await.unwrap();
        task.abort();
    }
}
