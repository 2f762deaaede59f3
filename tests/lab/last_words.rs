//! What did the daemons of a lab log, when its test fails? A test that returns an error panics in libtest's hands, after
//! its lab is gone.

use std::{cell::RefCell, panic, sync::Once, thread};

thread_local! {
    /// Of the lab that this thread had last.
    static WORDS: RefCell<Option<String>> = const { RefCell::new(None) };
}

static INSTALLED: Once = Once::new();

/// From now on whoever panics tells what was kept for it. What an earlier lab has left is forgotten.
pub(crate) fn listen() {
    INSTALLED.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            before(panic);
            if let Some(words) = WORDS.take() {
                eprintln!("{words}");
            }
        }));
    });
    WORDS.set(None);
}

/// Tells `words` if this thread panics already, or else once it does.
pub(crate) fn keep(words: String) {
    if thread::panicking() {
        eprintln!("{words}");
    } else {
        WORDS.set(Some(words));
    }
}
