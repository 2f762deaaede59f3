//! Does the operator's own program find the real server fit, and what weight does it give it?

use std::{io, time::Duration};

use super::Weight;
use crate::{config::model::MiscCheck, script::Ended};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MiscError {
    #[error("the program cannot be run here: {0}")]
    NotRun(io::ErrorKind),
    #[error("the program ended with {0}")]
    Exit(i32),
    #[error("the program was killed")]
    Killed,
    #[error("the program took longer than {0:?}")]
    Timeout(Duration),
}

/// The weight is given by `misc_dynamic` alone. Whoever gives up waiting kills the program and all it started.
pub async fn ask(check: &MiscCheck) -> Result<Option<Weight>, MiscError> {
    match check.script.run(&[], &[], check.timeout).await {
        Ok(Ended::ByItself(status)) => judge(status.code(), check.dynamic),
        Ok(Ended::TimedOut) => Err(MiscError::Timeout(check.timeout)),
        Err(error) => Err(MiscError::NotRun(error.kind())),
    }
}

/// keepalived's rule: 2 to 255 stand for the weights 0 to 253.
fn judge(code: Option<i32>, dynamic: bool) -> Result<Option<Weight>, MiscError> {
    match code {
        Some(0) => Ok(None),
        Some(code @ 2..) if dynamic => Ok(u16::try_from(code - 2).ok().map(Weight::To)),
        Some(code) => Err(MiscError::Exit(code)),
        None => Err(MiscError::Killed),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Instant};

    use super::*;
    use crate::script::{Account, Script};

    const LONG: Duration = Duration::from_secs(20);

    fn program(text: &str, timeout: Duration) -> MiscCheck {
        let words = ["/bin/sh", "-c", text].map(str::to_owned).into();
        let account = Account { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw() };
        MiscCheck { script: Script::new(words, account).unwrap(), timeout, dynamic: false }
    }

    async fn ends(text: &str, dynamic: bool) -> Result<Option<Weight>, MiscError> {
        ask(&MiscCheck { dynamic, ..program(text, LONG) }).await
    }

    #[tokio::test]
    async fn nothing_but_0_is_good_without_misc_dynamic() {
        assert_eq!(ends("exit 0", false).await, Ok(None));
        assert_eq!(ends("exit 1", false).await, Err(MiscError::Exit(1)));
        assert_eq!(ends("exit 2", false).await.unwrap_err().to_string(), "the program ended with 2");
    }

    #[tokio::test]
    async fn with_misc_dynamic_the_code_is_a_weight() {
        assert_eq!(ends("exit 0", true).await, Ok(None), "the weight stays");
        assert_eq!(ends("exit 1", true).await, Err(MiscError::Exit(1)));
        assert_eq!(ends("exit 2", true).await, Ok(Some(Weight::To(0))));
        assert_eq!(ends("exit 255", true).await, Ok(Some(Weight::To(253))));
    }

    #[tokio::test]
    async fn a_killed_program_fails() {
        assert_eq!(ends("kill -9 $$", true).await, Err(MiscError::Killed));
    }

    #[tokio::test]
    async fn a_program_that_takes_too_long_is_ended_with_its_children() {
        let limit = Duration::from_secs(1);
        let mark = std::env::temp_dir().join(format!("lvsd-misc-{}", std::process::id()));
        let text =
            format!("trap '' TERM; sleep 99 & echo $! > {0}.new; mv {0}.new {0}; wait", mark.display());
        #[expect(clippy::disallowed_methods, reason = "how long it takes is the question")]
        let start = Instant::now();
        assert_eq!(ask(&program(&text, limit)).await, Err(MiscError::Timeout(limit)));
        assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
        let child = fs::read_to_string(&mark).unwrap();
        fs::remove_file(&mark).unwrap();
        // A zombie until somebody reaps it, but no longer running.
        let stat = Path::new("/proc").join(child.trim()).join("stat");
        let lives = || fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "));
        let gone = async {
            while lives() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), gone)
            .await
            .expect("a child that is gone before its time");
    }

    #[tokio::test]
    async fn a_program_that_vanished_says_nothing_about_the_server() {
        let mut check = program("exit 0", LONG);
        check.script.program = "/none/such".into();
        assert_eq!(ask(&check).await, Err(MiscError::NotRun(io::ErrorKind::NotFound)));
    }
}
