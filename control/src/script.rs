//! Running somebody else's program: which one may be run, as whom, and how is it made to end?

use std::{
    collections::VecDeque,
    ffi::OsString,
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Component, Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Group, Pid, User},
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

/// A program and its arguments. No shell reads them.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// Absolute and without symbolic links.
    pub program: PathBuf,
    /// What it is called by: programs with many names look at this.
    pub name: String,
    pub arguments: Vec<String>,
    pub account: Account,
}

/// As whom a script runs. It has no other groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    #[error("an empty command")]
    Empty,
    #[error("a quote without its end")]
    Quote,
    #[error("{} is a relative path", .0.display())]
    Relative(PathBuf),
    #[error("there is no program {0:?} in {SEARCHED}", SEARCHED = SEARCHED.join(":"))]
    NotInPath(String),
    #[error("{}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: io::Error },
    #[error("{} is no regular file", .0.display())]
    NotRegular(PathBuf),
    #[error("{} is not executable for the user that would run it", .0.display())]
    NotExecutable(PathBuf),
    #[error("{} may be written by others than root and the user of the script", .0.display())]
    Writable(PathBuf),
    #[error("there is no user {0:?}")]
    NoUser(String),
    #[error("there is no group {0:?}")]
    NoGroup(String),
}

/// Where a program without a path is looked for. Not in the daemon's PATH: `lvsd check` on a terminal would find
/// other programs than the service.
const SEARCHED: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// As the kernel counts them (path_resolution(7)).
const MAX_LINKS: usize = 40;
/// From SIGTERM to SIGKILL, and how long the kernel may take to end a process after that.
const MERCY: Duration = Duration::from_secs(2);

impl Account {
    pub const ROOT: Self = Self { uid: 0, gid: 0 };

    /// Names or numbers; the user's own group where none is named.
    pub fn find(user: &str, group: Option<&str>) -> Result<Self, ScriptError> {
        let known = match user.parse() {
            Ok(uid) => User::from_uid(nix::unistd::Uid::from_raw(uid)),
            Err(_) => User::from_name(user),
        };
        let known = known.ok().flatten().ok_or_else(|| ScriptError::NoUser(user.to_owned()))?;
        let gid = group.map_or(Ok(known.gid.as_raw()), self::group)?;
        Ok(Self { uid: known.uid.as_raw(), gid })
    }

    /// Whoever is called `keepalived_script`, as in keepalived, else root.
    pub fn default_for_scripts() -> Self {
        Self::find("keepalived_script", None).unwrap_or(Self::ROOT)
    }
}

/// The number of a group, which may be named by it.
pub fn group(name: &str) -> Result<u32, ScriptError> {
    name.parse().or_else(|_| {
        let known = Group::from_name(name).ok().flatten();
        Ok(known.ok_or_else(|| ScriptError::NoGroup(name.to_owned()))?.gid.as_raw())
    })
}

impl Script {
    /// Finds the program and refuses it where somebody else could put another in its place.
    pub fn new(mut words: VecDeque<String>, account: Account) -> Result<Self, ScriptError> {
        let name = words.pop_front().filter(|name| !name.is_empty()).ok_or(ScriptError::Empty)?;
        let named = Path::new(&name);
        let path = if named.is_absolute() {
            named.to_owned()
        } else if name.contains('/') {
            return Err(ScriptError::Relative(named.to_owned()));
        } else {
            let mut places = SEARCHED.iter().map(|place| Path::new(place).join(&name));
            places.find(|path| path.is_file()).ok_or_else(|| ScriptError::NotInPath(name.clone()))?
        };
        let program = resolve(&path, |path, found| {
            let others = others_may_write(found.uid(), found.gid(), found.mode(), account);
            if others { Err(ScriptError::Writable(path.to_owned())) } else { Ok(()) }
        })?;
        let found = fs::metadata(&program)
            .map_err(|cause| ScriptError::Unreadable { path: program.clone(), cause })?;
        if !found.is_file() {
            return Err(ScriptError::NotRegular(program));
        }
        if !may_execute(found.uid(), found.gid(), found.permissions().mode(), account) {
            return Err(ScriptError::NotExecutable(program));
        }
        Ok(Self { program, name, arguments: words.into(), account })
    }

    /// Runs it to its end, which comes after `limit` at the latest. Its output is nobody's. Dropped, this kills
    /// the script and all it has started.
    pub async fn run(
        &self,
        more_arguments: &[String],
        environment: &[(&'static str, String)],
        limit: Duration,
    ) -> io::Result<Ended> {
        let command = self.command(more_arguments, environment);
        // The file may lie on a server that does not answer.
        let spawn = tokio::task::spawn_blocking(move || Running::start(command));
        let Ok(spawned) = timeout(limit, spawn).await else { return Ok(Ended::TimedOut) };
        let mut running = spawned.unwrap_or_else(|error| Err(io::Error::other(error)))?;
        match timeout(limit, running.wait()).await {
            Ok(status) => Ok(Ended::ByItself(status?)),
            Err(_) => {
                running.signal(Signal::SIGTERM);
                if timeout(MERCY, running.wait()).await.is_err() {
                    running.signal(Signal::SIGKILL);
                    // A process inside a system call that does not end stays behind, for tokio to reap.
                    let _ = timeout(MERCY, running.wait()).await;
                }
                Ok(Ended::TimedOut)
            }
        }
    }

    fn command(&self, more_arguments: &[String], environment: &[(&'static str, String)]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg0(&self.name)
            .args(&self.arguments)
            .args(more_arguments)
            .current_dir("/")
            // Nothing of the daemon's own, its notification socket least of all.
            .env_clear()
            .env("PATH", SEARCHED.join(":"))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true);
        // Without a change of user the program is started as by vfork. A fork would mark all memory for copying,
        // that of the VRRP thread too.
        if self.account != Account::ROOT {
            command.gid(self.account.gid).uid(self.account.uid);
        }
        command
    }
}

/// How a script ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    ByItself(ExitStatus),
    /// It was made to.
    TimedOut,
}

impl Ended {
    pub fn success(self) -> bool {
        matches!(self, Self::ByItself(status) if status.success())
    }
}

/// A script that runs, with the process group that it leads. Dropped, all of it is killed.
struct Running {
    child: Child,
    /// None once the leader was reaped: the number may be somebody else's then.
    group: Option<Pid>,
}

impl Running {
    fn start(mut command: Command) -> io::Result<Self> {
        let child = command.spawn()?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        Ok(Self { child, group })
    }

    async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await;
        self.group = None;
        status
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It may just have ended.
            let _ = killpg(group, signal);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// Words of a command as keepalived separates them: blanks, except between `"` or `'`. A backslash is itself.
pub fn words(command: &str) -> Result<VecDeque<String>, ScriptError> {
    let mut words = VecDeque::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in command.chars() {
        match (quote, c) {
            (Some(end), c) if c == end => quote = None,
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote.is_some() { Err(ScriptError::Quote) } else { Ok(words) }
}

/// Follows the path as the kernel would and shows `visit` every directory on the way, and the file.
fn resolve(
    path: &Path,
    mut visit: impl FnMut(&Path, &fs::Metadata) -> Result<(), ScriptError>,
) -> Result<PathBuf, ScriptError> {
    let parts = |path: &Path| -> Vec<OsString> {
        let names = path.components().filter(|part| !matches!(part, Component::RootDir | Component::CurDir));
        names.map(|part| part.as_os_str().to_owned()).collect()
    };
    let mut left: VecDeque<OsString> = parts(path).into();
    let mut here = PathBuf::from("/");
    let mut links = 0;
    loop {
        let failed = |cause| ScriptError::Unreadable { path: path.to_owned(), cause };
        visit(&here, &fs::symlink_metadata(&here).map_err(failed)?)?;
        let Some(part) = left.pop_front() else { return Ok(here) };
        if part == ".." {
            here.pop();
            continue;
        }
        let next = here.join(part);
        if fs::symlink_metadata(&next).map_err(failed)?.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(failed(io::Error::other("too many symbolic links")));
            }
            let target = fs::read_link(&next).map_err(failed)?;
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            parts(&target).into_iter().rev().for_each(|part| left.push_front(part));
        } else {
            here = next;
        }
    }
}

/// An owner may always give himself the right. In a directory with the sticky bit a name is free for anybody as
/// soon as its file is removed.
fn others_may_write(uid: u32, gid: u32, mode: u32, account: Account) -> bool {
    (uid != 0 && uid != account.uid) || (mode & 0o020 != 0 && gid != 0) || mode & 0o002 != 0
}

fn may_execute(uid: u32, gid: u32, mode: u32, account: Account) -> bool {
    let bit = match () {
        () if account.uid == 0 => 0o111,
        () if account.uid == uid => 0o100,
        () if account.gid == gid => 0o010,
        () => 0o001,
    };
    mode & bit != 0
}

#[cfg(test)]
mod tests;
