//! How does a test learn that what runs beside it, an instrument or a load, ended before its time?

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use anyhow::{Context as _, Result, anyhow};

use crate::realtime;

/// Works on a thread of its own until it is dropped. If its work has failed by then, so does the test: what an
/// instrument did not see proves nothing.
pub(crate) struct Background {
    name: &'static str,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Background {
    /// `work` ends soon after its flag is set.
    pub fn start(name: &'static str, work: impl FnOnce(&AtomicBool) -> Result<()> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                realtime::enter();
                work(&stop)
            }
        });
        Self { name, stop, thread: Some(thread) }
    }

    /// Ends it, and says what went wrong until then.
    pub fn finish(&mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else { return Ok(()) };
        let end = thread.join().unwrap_or_else(|_| Err(anyhow!("it panicked")));
        end.with_context(|| format!("{} failed", self.name))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        match self.finish() {
            Ok(()) => {}
            Err(error) if thread::panicking() => eprintln!("{error:#}"),
            #[expect(clippy::panic, reason = "a test that ends here has no other way to hear of it")]
            Err(error) => panic!("{error:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn an_instrument_that_failed_fails_its_test_when_it_is_dropped() {
        let drop_of = |instrument| catch_unwind(AssertUnwindSafe(|| drop(instrument)));
        assert!(drop_of(Background::start("this one", |_| Ok(()))).is_ok());
        assert!(drop_of(Background::start("this one", |_| Err(anyhow!("no more frames")))).is_err());
        assert!(drop_of(Background::start("this one", |_| panic!("at once"))).is_err());
    }
}
