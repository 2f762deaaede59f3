//! What number stands in a file, and when does it change?
//!
//! inotify on the file's directory says when to look, so a file may come, go and be replaced. What it does not tell
//! of (a symbolic link's target, a network file system, a directory that was not there) a slower look finds.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{fd::AsFd as _, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    libc,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tokio::{io::unix::AsyncFd, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

/// Tells everybody when to look at a file. Cheap to clone.
#[derive(Clone)]
pub struct Files(Arc<Shared>);

struct Shared {
    /// None where the kernel gives no more: then only the slow look is left.
    inotify: Option<Inotify>,
    /// By directory, then by name: counts what happened to that name.
    waiting: Mutex<HashMap<WatchDescriptor, Names>>,
}

type Names = HashMap<OsString, watch::Sender<u64>>;

/// One file, as somebody follows it.
pub struct Follower {
    files: Files,
    path: PathBuf,
    told: Option<i32>,
    /// The last complaint, so that it is said once.
    complaint: Option<String>,
}

/// What `init_file` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Initial {
    pub value: i32,
    /// Even where the file is there.
    pub overwrite: bool,
}

#[derive(Debug, thiserror::Error)]
enum FileValueError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it is no regular file")]
    NotRegular,
    #[error("it does not begin with a whole number")]
    NotANumber,
}

/// How often a file is looked at of which nobody told.
const SLOW_LOOK: Duration = Duration::from_secs(5);
/// A number, a newline, and room for what somebody writes behind it.
const LONGEST: u64 = 128;
/// An empty file is one that is being written, if it is not empty any more after this.
const WRITING: Duration = Duration::from_millis(50);
/// So often a watch may end, or a folder be replaced, while a follower comes to it.
const RETRIES: usize = 4;
/// However often a file is written, it is looked at no more often than this.
const PACE: Duration = Duration::from_millis(5);

impl Files {
    pub fn open() -> Self {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .inspect_err(|error| {
                tracing::warn!(%error, every = ?SLOW_LOOK, "no inotify: tracked files are looked at now and then");
            })
            .ok();
        Self(Arc::new(Shared { inotify, waiting: Mutex::default() }))
    }

    pub fn follow(&self, path: &Path) -> Follower {
        Follower { files: self.clone(), path: path.to_owned(), told: None, complaint: None }
    }

    /// Passes on what the kernel tells, until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let Some(inotify) = &self.0.inotify else { return };
        // SAFETY: `inotify` owns the descriptor, and lives as long as `self`: longer than the AsyncFd.
        let descriptor = match unsafe { AsyncFd::register(inotify.as_fd()) } {
            Ok(descriptor) => descriptor,
            Err(error) => return tracing::warn!(%error, "tracked files are looked at now and then"),
        };
        loop {
            let mut ready = tokio::select! {
                () = cancel.cancelled() => return,
                Ok(ready) = descriptor.readable() => ready,
            };
            match inotify.read_events() {
                Ok(events) => self.pass_on(&events),
                Err(Errno::EAGAIN) => ready.clear_ready(),
                // The slow look goes on.
                Err(error) => return tracing::warn!(%error, "tracked files are looked at now and then"),
            }
        }
    }

    fn pass_on(&self, events: &[InotifyEvent]) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                waiting.values().flat_map(HashMap::values).for_each(ring);
            }
            if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                // The directory is gone. Dropping the senders wakes whoever waits.
                waiting.remove(&event.wd);
            }
            let Some(names) = waiting.get_mut(&event.wd) else { continue };
            names.retain(|_, bell| bell.receiver_count() > 0);
            if let Some(bell) = event.name.as_ref().and_then(|name| names.get(name)) {
                ring(bell);
            }
            if names.is_empty() {
                waiting.remove(&event.wd);
                if let Some(inotify) = &self.0.inotify {
                    let _ = inotify.rm_watch(event.wd);
                }
            }
        }
    }

    /// Who rings when something happens to that name; none where nobody will.
    fn bell(&self, path: &Path) -> Option<watch::Receiver<u64>> {
        let events = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ONLYDIR;
        let (inotify, folder, name) = (self.0.inotify.as_ref()?, path.parent()?, path.file_name()?);
        let mut watched = inotify.add_watch(folder, events).ok()?;
        for _ in 0..RETRIES {
            let bell = {
                let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                let names = waiting.entry(watched).or_default();
                names.entry(name.to_owned()).or_default().subscribe()
            };
            // Not under the lock: the server of the folder may not answer, and others wait for other files. So the
            // watch may have ended with its last follower just before there was this one.
            let now = inotify.add_watch(folder, events).ok()?;
            if now == watched {
                return Some(bell);
            }
            watched = now;
        }
        None
    }
}

fn ring(bell: &watch::Sender<u64>) {
    bell.send_modify(|count| *count = count.wrapping_add(1));
}

impl Follower {
    /// The number at first, then whenever it has changed.
    pub async fn next(&mut self) -> i32 {
        loop {
            let (files, path) = (self.files.clone(), self.path.clone());
            // Before the file is read: what happens from now on rings.
            let look = move || (files.bell(&path), read(&path));
            // It may lie on a server that does not answer. The thread waits alone.
            let Ok((bell, found)) = tokio::task::spawn_blocking(look).await else { continue };
            let value = self.judge(found);
            if self.told.replace(value) != Some(value) {
                return value;
            }
            match bell {
                Some(mut bell) => drop(timeout(SLOW_LOOK, bell.changed()).await),
                None => tokio::time::sleep(SLOW_LOOK).await,
            }
            tokio::time::sleep(PACE).await;
        }
    }

    /// keepalived's rule: what holds no number, or is not there, counts as 0.
    fn judge(&mut self, found: Result<i32, FileValueError>) -> i32 {
        let complaint = found.as_ref().err().map(ToString::to_string);
        if let Some(cause) = complaint.as_ref().filter(|_| complaint != self.complaint) {
            tracing::warn!(file = %self.path.display(), cause, "a tracked file counts as 0");
        }
        self.complaint = complaint;
        found.unwrap_or(0)
    }
}

fn read(path: &Path) -> Result<i32, FileValueError> {
    let text = read_start(path)?;
    if !text.is_empty() {
        return number(&text);
    }
    std::thread::sleep(WRITING);
    number(&read_start(path)?)
}

fn read_start(path: &Path) -> Result<Vec<u8>, FileValueError> {
    // A FIFO must not hold us up.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut text = Vec::new();
    regular(file)?.take(LONGEST).read_to_end(&mut text)?;
    Ok(text)
}

fn regular(file: File) -> Result<File, FileValueError> {
    if file.metadata()?.is_file() { Ok(file) } else { Err(FileValueError::NotRegular) }
}

/// The first word, cut to 32 bits.
fn number(text: &[u8]) -> Result<i32, FileValueError> {
    let word = text.split(u8::is_ascii_whitespace).find(|word| !word.is_empty()).unwrap_or(b"0");
    let word = str::from_utf8(word).map_err(|_| FileValueError::NotANumber)?;
    let number: i128 = word.parse().map_err(|_| FileValueError::NotANumber)?;
    Ok(number.clamp(i32::MIN.into(), i32::MAX.into()) as i32)
}

/// Writes what `init_file` says. A symbolic link is not followed: whoever may write to the directory could have
/// anything overwritten.
pub fn initialise(path: &Path, initial: Initial) {
    let write = || -> Result<(), FileValueError> {
        let mut how = OpenOptions::new();
        how.write(true).mode(0o644).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = match how.clone().create_new(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match initial.overwrite {
                true => how.open(path)?,
                false => return Ok(()),
            },
            opened => opened?,
        };
        let mut file = regular(file)?;
        file.set_len(0)?;
        Ok(writeln!(file, "{}", initial.value)?)
    };
    if let Err(error) = write() {
        tracing::warn!(file = %path.display(), cause = error.to_string(), "a tracked file cannot be initialised");
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    /// Shorter than the slow look: only the kernel can have told.
    const SOON: Duration = Duration::from_secs(4);

    struct Bench {
        folder: PathBuf,
        files: Files,
        _running: tokio_util::sync::DropGuard,
    }

    impl Bench {
        fn new(name: &str) -> Self {
            let folder = std::env::temp_dir().join(format!("lvsd-file-{}-{name}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let (files, cancel) = (Files::open(), CancellationToken::new());
            tokio::spawn(files.clone().run(cancel.clone()));
            Self { folder, files, _running: cancel.drop_guard() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.folder.join(name)
        }
    }

    impl Drop for Bench {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    async fn next(follower: &mut Follower) -> i32 {
        timeout(SOON, follower.next()).await.expect("the kernel told of the change")
    }

    /// The value after `change`, which happens when nothing but the kernel can tell of it any more.
    async fn next_after(follower: &mut Follower, change: impl FnOnce()) -> i32 {
        let next = follower.next();
        tokio::pin!(next);
        // Longer than a look takes: from now on it waits.
        let early = timeout(Duration::from_millis(500), &mut next).await;
        assert!(early.is_err(), "{early:?} without a change");
        change();
        timeout(SOON, next).await.expect("the kernel told of the change")
    }

    #[tokio::test]
    async fn a_file_is_followed_however_it_is_written_replaced_and_removed() {
        let bench = Bench::new("followed");
        let path = bench.path("value");
        let mut follower = bench.files.follow(&path);
        assert_eq!(next(&mut follower).await, 0, "not there yet");
        assert_eq!(next_after(&mut follower, || fs::write(&path, "7\n").unwrap()).await, 7);
        fs::write(bench.path("new"), "-12 and a remark").unwrap();
        let replace = || fs::rename(bench.path("new"), &path).unwrap();
        assert_eq!(next_after(&mut follower, replace).await, -12);
        assert_eq!(next_after(&mut follower, || fs::remove_file(&path).unwrap()).await, 0);
        fs::write(bench.path("target"), "3").unwrap();
        let link = || symlink(bench.path("target"), &path).unwrap();
        assert_eq!(next_after(&mut follower, link).await, 3);
    }

    #[tokio::test]
    async fn a_directory_that_is_made_anew_is_watched_again() {
        let bench = Bench::new("directory");
        let folder = bench.path("inner");
        fs::create_dir(&folder).unwrap();
        let path = folder.join("value");
        fs::write(&path, "1").unwrap();
        let mut follower = bench.files.follow(&path);
        assert_eq!(next(&mut follower).await, 1);
        assert_eq!(next_after(&mut follower, || fs::remove_dir_all(&folder).unwrap()).await, 0);
        fs::create_dir(&folder).unwrap();
        fs::write(&path, "2").unwrap();
        // By the slow look, if it has looked while there was none.
        assert_eq!(timeout(2 * SLOW_LOOK, follower.next()).await.unwrap(), 2);
        assert_eq!(next_after(&mut follower, || fs::write(&path, "3").unwrap()).await, 3);
    }

    #[tokio::test]
    async fn whoever_follows_no_more_is_forgotten() {
        let bench = Bench::new("forgotten");
        let path = bench.path("value");
        bench.files.follow(&path).next().await;
        assert_eq!(bench.files.0.waiting.lock().unwrap().len(), 1);
        let is_forgotten = async {
            loop {
                fs::write(&path, "1").unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
                if bench.files.0.waiting.lock().unwrap().is_empty() {
                    return;
                }
            }
        };
        timeout(SOON, is_forgotten).await.unwrap();
    }

    #[test]
    fn what_is_no_number_counts_as_0_and_a_large_one_is_cut() {
        let value = |text: &[u8]| number(text).ok();
        assert_eq!(value(b" +5\nx"), Some(5));
        assert_eq!(value(b""), Some(0));
        assert_eq!(value(b"-99999999999999999999"), Some(i32::MIN));
        for garbage in [&b"five"[..], b"1.5", b"0x10", b"--1", b"\xff\xfe", b"\x001", &[b'9'; 128]] {
            assert_eq!(value(garbage), None, "{garbage:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_file_of_ours_is_refused_and_holds_nobody_up() {
        let bench = Bench::new("hostile");
        let pipe = bench.path("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [pipe.as_path(), &bench.folder, Path::new("/dev/zero")] {
            assert!(matches!(read(path), Err(FileValueError::NotRegular)), "{}", path.display());
            assert_eq!(next(&mut bench.files.follow(path)).await, 0);
        }
    }

    #[tokio::test]
    async fn a_file_is_initialised_once_and_never_through_a_link() {
        let bench = Bench::new("initial");
        let (path, link, victim) = (bench.path("value"), bench.path("link"), bench.path("victim"));
        let content = |path: &Path| fs::read_to_string(path).unwrap();
        initialise(&path, Initial { value: 4, overwrite: false });
        assert_eq!(content(&path), "4\n");
        initialise(&path, Initial { value: 5, overwrite: false });
        assert_eq!(content(&path), "4\n");
        initialise(&path, Initial { value: 6, overwrite: true });
        assert_eq!(content(&path), "6\n");
        fs::write(&victim, "precious").unwrap();
        symlink(&victim, &link).unwrap();
        initialise(&link, Initial { value: 7, overwrite: true });
        assert_eq!(content(&victim), "precious");
    }
}
