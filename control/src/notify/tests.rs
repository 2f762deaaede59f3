use std::{fs, io::Read as _, path::PathBuf};

use super::*;
use crate::{config::model, script::Account};

/// A directory of its own, gone afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lvsd-notify-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A script that runs `command` with this directory as `$DIR`.
    fn script(&self, command: &str) -> Option<Script> {
        let command = format!("DIR={}; {command}", self.0.display());
        let words = ["/bin/sh".to_owned(), "-c".to_owned(), command, "sh".to_owned()];
        Some(Script::new(words.into(), Account::ROOT).unwrap())
    }

    fn said(&self) -> String {
        fs::read_to_string(self.0.join("log")).unwrap_or_default()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn notice(from: State, to: State) -> Notice {
    let what = What::Became(to);
    Notice {
        subject: Subject::Instance(0),
        from,
        what,
        priority: 150,
        cause: "a cause".to_owned(),
        change: 0,
    }
}

fn notifier(notify: Notify, fifos: Vec<Fifo>) -> (Notifier, watch::Sender<u64>) {
    let (settled, seen) = watch::channel(0);
    let listener = |name: &str, members| Listener { name: name.to_owned(), notify: notify.clone(), members };
    let notifier = Notifier {
        speaker: Speaker {
            lanes: Lanes::new(2, RUNNING, WAITING),
            fifos,
            mailer: Mailer::new().0,
            settled: seen,
        },
        instances: vec![listener("VI_1", vec![])],
        groups: vec![listener("VG_1", vec![0])],
    };
    (notifier, settled)
}

/// Tells it all at once and lets it end.
async fn tell(notifier: Notifier, told: &[Notice]) {
    let (sender, notices) = mpsc::channel(told.len().max(1));
    for notice in told {
        sender.try_send(notice.clone()).unwrap();
    }
    drop(sender);
    let cancel = CancellationToken::new();
    if told.last().is_some_and(|last| last.what == What::Became(State::Init)) {
        cancel.cancel();
    }
    notifier.run(notices, cancel).await;
}

#[tokio::test]
async fn the_reader_of_a_fifo_gets_its_name_and_every_line() {
    let scratch = Scratch::new("reader");
    let path = scratch.0.join("fifo");
    let reader = scratch.script("while read -r line; do echo \"$line\" >> $DIR/log; done < $1");
    let fifos = open(&[model::Fifo { path, account: Account::ROOT, reader }]);
    let (notifier, _settled) = notifier(Notify::default(), fifos);
    tell(notifier, &[notice(State::Init, State::Backup), notice(State::Backup, State::Master)]).await;
    assert_eq!(scratch.said(), "INSTANCE \"VI_1\" BACKUP 150\nINSTANCE \"VI_1\" MASTER 150\n");
}

#[tokio::test]
async fn what_is_no_change_of_state_has_words_of_its_own() {
    let scratch = Scratch::new("words");
    let log = |name: &str| scratch.script(&format!("echo {name} $* $LVSD_STATE >> $DIR/log"));
    let notify = Notify {
        master: log("master"),
        fault: log("fault"),
        deleted: log("deleted"),
        master_rx_lower_pri: log("lower"),
        any: log("any"),
        ..Notify::default()
    };
    let fifo = scratch.0.join("fifo");
    let config = model::Fifo { path: fifo.clone(), account: Account::ROOT, reader: None };
    let (notifier, _settled) = notifier(notify, open(&[config]));
    let mut reader = OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let all =
        [What::LowerPriority, What::Priority(State::Master), What::Priority(State::Backup), What::Deleted];
    let told = all.map(|what| Notice { what, ..notice(State::Master, State::Master) });
    tell(notifier, &told).await;
    let ran = "lower MASTER_RX_LOWER_PRI\ndeleted DELETED\nany INSTANCE VI_1 DELETED 150 DELETED\n";
    assert_eq!(scratch.said(), ran);
    let words = ["MASTER_RX_LOWER_PRI", "MASTER_PRIORITY", "BACKUP_PRIORITY", "DELETED"];
    let expected: String = words.iter().map(|word| format!("INSTANCE \"VI_1\" {word} 150\n")).collect();
    let mut lines = vec![0; expected.len()];
    reader.read_exact(&mut lines).unwrap();
    assert_eq!(String::from_utf8(lines).unwrap(), expected);
}

#[tokio::test]
async fn scripts_run_in_the_order_of_the_changes_and_are_told_what_happened() {
    let scratch = Scratch::new("order");
    // What a later one would overtake if it were not waited for.
    let log = |name: &str| scratch.script(&format!("sleep 0.05; echo {name} $* >> $DIR/log"));
    let notify = Notify {
        master: log("master"),
        backup: log("backup"),
        any: scratch.script(
            "echo $* from $LVSD_FROM by $LVSD_CAUSE, $LVSD_TYPE $LVSD_NAME $LVSD_STATE $LVSD_PRIORITY >> $DIR/log",
        ),
        ..Notify::default()
    };
    let (notifier, _settled) = notifier(notify, vec![]);
    tell(notifier, &[notice(State::Init, State::Backup), notice(State::Backup, State::Master)]).await;
    let expected = "backup\n\
        INSTANCE VI_1 BACKUP 150 from INIT by a cause, INSTANCE VI_1 BACKUP 150\n\
        master\n\
        INSTANCE VI_1 MASTER 150 from BACKUP by a cause, INSTANCE VI_1 MASTER 150\n";
    assert_eq!(scratch.said(), expected);
}

#[tokio::test]
async fn a_group_is_told_when_its_members_scripts_have_ended() {
    let scratch = Scratch::new("group");
    let say = scratch.script("[ $1 = GROUP ] || sleep 0.2; echo $* >> $DIR/log");
    let (notifier, _settled) = notifier(Notify { any: say, ..Notify::default() }, vec![]);
    let instance = notice(State::Backup, State::Master);
    let group = Notice { subject: Subject::Group(0), priority: 0, ..instance.clone() };
    tell(notifier, &[instance, group]).await;
    assert_eq!(scratch.said(), "INSTANCE VI_1 MASTER 150\nGROUP VG_1 MASTER 0\n");
}

#[tokio::test]
async fn with_smtp_alert_states_and_split_brains_are_mailed_but_no_stop() {
    let (mut notifier, _settled) = notifier(Notify { mail: true, ..Notify::default() }, vec![]);
    let (mailer, mut letters) = Mailer::new();
    notifier.speaker.mailer = mailer;
    let changes = [
        notice(State::Init, State::Backup),
        Notice { what: What::SplitBrain, ..notice(State::Master, State::Master) },
        Notice { what: What::LowerPriority, ..notice(State::Master, State::Master) },
        notice(State::Backup, State::Fault),
        notice(State::Fault, State::Init),
    ];
    tell(notifier, &changes).await;
    let said: Vec<_> = std::iter::from_fn(|| letters.try_recv().ok())
        .map(|letter| (letter.subject, letter.text, letter.is_fault))
        .collect();
    let letter = |state: &str, from: &str, is_fault| {
        (format!("VRRP instance VI_1 is {state}"), format!("It was {from}: a cause.\n"), is_fault)
    };
    let expected = [
        letter("BACKUP", "INIT", false),
        letter("SPLIT_BRAIN", "MASTER", false),
        letter("FAULT", "BACKUP", true),
    ];
    assert_eq!(said, expected);
}

#[tokio::test]
async fn a_script_waits_until_the_host_has_acted() {
    let scratch = Scratch::new("settled");
    let (notifier, settled) = notifier(
        Notify { master: scratch.script("cat $DIR/address >> $DIR/log"), ..Notify::default() },
        vec![],
    );
    let change = [Notice { change: 7, ..notice(State::Backup, State::Master) }];
    let host = async {
        sleep(Duration::from_millis(200)).await;
        fs::write(scratch.0.join("address"), "here").unwrap();
        settled.send_replace(7);
    };
    tokio::join!(tell(notifier, &change), host);
    assert_eq!(scratch.said(), "here");
}

#[tokio::test]
async fn a_stop_is_told_beside_a_script_that_hangs_and_both_have_a_second() {
    let scratch = Scratch::new("stop");
    let hang = "echo $1 >> $DIR/log; sleep 30; echo late >> $DIR/log";
    let notify = Notify {
        backup: scratch.script(hang),
        stop: scratch.script("echo stop >> $DIR/log; sleep 30"),
        ..Notify::default()
    };
    let (notifier, _settled) = notifier(notify, vec![]);
    let start = Instant::now();
    tell(notifier, &[notice(State::Init, State::Backup), notice(State::Backup, State::Init)]).await;
    let took = start.elapsed();
    assert!(scratch.said().contains("stop"), "{}", scratch.said());
    assert!(took >= LAST_WORDS && took < LAST_WORDS + Duration::from_secs(10), "{took:?}");
}

#[tokio::test]
async fn a_fifo_gets_a_line_for_each_change_and_never_blocks() {
    let scratch = Scratch::new("fifo");
    let path = scratch.0.join("fifo");
    let config = model::Fifo { path: path.clone(), account: Account::ROOT, reader: None };
    let mut reader = Fifo::open(&config).unwrap().file;
    let (notifier, _settled) = notifier(Notify::default(), vec![Fifo::open(&config).unwrap()]);
    tell(notifier, &[notice(State::Backup, State::Master), notice(State::Master, State::Init)]).await;
    let mut said = [0; 256];
    let length = reader.read(&mut said).unwrap();
    let said = std::str::from_utf8(said.get(..length).unwrap()).unwrap();
    assert_eq!(said, "INSTANCE \"VI_1\" MASTER 150\nINSTANCE \"VI_1\" STOP 150\n");

    let mut full = Fifo::open(&config).unwrap();
    for _ in 0..10_000 {
        full.tell("a line that nobody reads\n");
    }
    assert!(full.full);
    fs::write(scratch.0.join("file"), "").unwrap();
    let file = model::Fifo { path: scratch.0.join("file"), ..config };
    assert!(Fifo::open(&file).is_err(), "a file is no FIFO");
}
