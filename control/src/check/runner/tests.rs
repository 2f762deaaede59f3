use std::{collections::HashSet, net::SocketAddr, sync::Arc};

use tokio::{
    io::AsyncReadExt as _,
    net::TcpListener,
    sync::watch::channel,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    check::{
        ConnectError,
        testing::{check_of, full_backlog},
    },
    config::model::{FileCheck, Forwarding, HttpCheck, HttpProtocol, MiscCheck, OnVip, Url},
    script::{Account, Script},
};

/// More than any of these tests needs on a slow machine.
const LONG: Duration = Duration::from_secs(30);

struct Bench {
    isolated: watch::Sender<HashSet<IpAddr>>,
    held: watch::Sender<HashSet<IpAddr>>,
    here: Here,
    runner: Runner,
    verdicts: mpsc::Receiver<Verdict>,
    cancel: CancellationToken,
}

impl Bench {
    fn start(checks: impl IntoIterator<Item = Check>, capacity: usize) -> Self {
        let targets =
            checks.into_iter().enumerate().map(|(id, check)| Target { id, check, up: true }).collect();
        let (sender, verdicts) = mpsc::channel(capacity);
        let (isolated, held, here) = host();
        let cancel = CancellationToken::new();
        let mut runner = Runner::new(sender, here.clone(), Files::open(), cancel.clone());
        runner.set(targets);
        Self { isolated, held, here, runner, verdicts, cancel }
    }

    async fn verdict(&mut self) -> Verdict {
        timeout(LONG, self.verdicts.recv()).await.expect("a verdict in time").expect("a running runner")
    }
}

/// One that is not cut off and has no address that a check depends on.
fn host() -> (watch::Sender<HashSet<IpAddr>>, watch::Sender<HashSet<IpAddr>>, Here) {
    let (cut, isolated) = channel(HashSet::new());
    let (have, held) = channel(HashSet::new());
    (cut, have, Here { isolated, held, next_hops: channel(HashMap::new()).1 })
}

async fn listener(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn http_check_of(address: SocketAddr) -> Check {
    let url = Url {
        path: "/".into(),
        status: vec![(200, 299)],
        digest: None,
        search: None,
        host: "www".into(),
        server_name: IpAddr::from([127, 0, 0, 1]).into(),
    };
    let http = HttpCheck { urls: vec![url], protocol: HttpProtocol::V1_0, fast_recovery: false, tls: None };
    Check { kind: CheckKind::Http(Box::new(http)), ..check_of(address) }
}

/// Takes every connection and closes it.
async fn accept_all(listener: TcpListener) {
    while listener.accept().await.is_ok() {}
}

#[tokio::test]
async fn a_server_is_reported_once_and_then_at_each_change() {
    let (server, address) = listener("127.0.0.1:0").await;
    let mut bench = Bench::start([check_of(address)], 8);
    assert_eq!(bench.verdict().await, Verdict { id: 0, up: true, weight: None, error: None });

    drop(server);
    let down = bench.verdict().await;
    assert_eq!((down.up, down.error.unwrap().to_string().as_str()), (false, "connection refused"));

    let (_server, _) = listener(&address.to_string()).await;
    assert_eq!(bench.verdict().await, Verdict { id: 0, up: true, weight: None, error: None });
    sleep(Duration::from_millis(300)).await;
    assert!(bench.verdicts.is_empty(), "no change, no verdict");
}

#[tokio::test]
async fn a_director_that_is_cut_off_blames_no_real_server() {
    let (server, address) = listener("127.0.0.1:0").await;
    let mut bench = Bench::start([check_of(address)], 8);
    assert!(bench.verdict().await.up);

    bench.isolated.send_replace([[127, 0, 0, 1].into()].into());
    drop(server);
    sleep(Duration::from_millis(500)).await;
    assert!(bench.verdicts.is_empty(), "cut off, no verdict");

    bench.isolated.send_replace(HashSet::new());
    assert!(!bench.verdict().await.up);
}

#[tokio::test]
async fn where_the_virtual_address_cannot_be_asked_the_real_servers_own_decides() {
    // Nobody knows the next hop of this one.
    let on_vip = OnVip {
        address: [10, 0, 0, 100].into(),
        real: [10, 0, 0, 11].into(),
        forwarding: Forwarding::Direct,
    };
    let (server, address) = listener("127.0.0.1:0").await;
    let mut bench = Bench::start([Check { on_vip: Some(Box::new(on_vip)), ..check_of(address) }], 8);
    assert!(bench.verdict().await.up);
    drop(server);
    assert!(!bench.verdict().await.up);
    let (_server, _) = listener(&address.to_string()).await;
    assert!(bench.verdict().await.up);
}

#[tokio::test]
async fn with_ha_suspend_nothing_is_asked_and_nothing_changes_while_the_address_is_elsewhere() {
    let vip = IpAddr::from([10, 0, 0, 100]);
    let (server, address) = listener("127.0.0.1:0").await;
    let mut bench = Bench::start([Check { only_with: Some(vip), ..check_of(address) }], 8);
    assert!(timeout(Duration::from_millis(1500), server.accept()).await.is_err(), "it was asked");
    assert!(bench.verdicts.is_empty());

    bench.held.send_replace([vip].into());
    assert!(bench.verdict().await.up);
    bench.held.send_replace(HashSet::new());
    // What was under way.
    sleep(Duration::from_millis(300)).await;
    drop(server);
    sleep(Duration::from_millis(500)).await;
    assert!(bench.verdicts.is_empty(), "not here, no verdict");

    bench.held.send_replace([vip].into());
    assert!(!bench.verdict().await.up);
}

#[tokio::test]
async fn a_change_of_targets_ends_those_that_went_and_leaves_the_others_alone() {
    let (first, first_address) = listener("127.0.0.1:0").await;
    let (second, second_address) = listener("127.0.0.1:0").await;
    let mut bench = Bench::start([check_of(first_address), check_of(second_address)], 8);
    let told: HashSet<usize> = [bench.verdict().await.id, bench.verdict().await.id].into();
    assert_eq!(told, [0, 1].into());

    let stays = Target { id: 1, check: check_of(second_address), up: true };
    bench.runner.set(vec![stays]);
    drop((first, second));
    assert_eq!(bench.verdict().await.id, 1, "and not told as new before");
    sleep(Duration::from_millis(300)).await;
    assert!(bench.verdicts.is_empty(), "the other is checked no more");
}

#[tokio::test]
async fn a_check_that_cannot_start_gives_no_verdict() {
    let (_server, address) = listener("127.0.0.1:0").await;
    let mut check = check_of(address);
    Arc::make_mut(&mut check.source).address = Some("192.0.2.1".parse().unwrap());
    let mut bench = Bench::start([check, check_of(address)], 8);
    assert_eq!(bench.verdict().await.id, 1);
    sleep(Duration::from_millis(300)).await;
    assert!(bench.verdicts.is_empty());
}

#[tokio::test]
async fn thousands_of_servers_are_checked_and_a_full_channel_loses_none() {
    const COUNT: usize = 3000;
    let (server, address) = listener("127.0.0.1:0").await;
    let accepting = tokio::spawn(accept_all(server));
    let mut check = check_of(address);
    Arc::make_mut(&mut check.timing).delay_loop = Duration::from_secs(60);
    let mut bench = Bench::start(std::iter::repeat_n(check, COUNT), 1);
    // Nobody listens when the first verdicts come.
    sleep(Duration::from_millis(1500)).await;
    let mut seen = HashSet::new();
    while seen.len() < COUNT {
        let verdict = bench.verdict().await;
        assert!(verdict.up && seen.insert(verdict.id), "{verdict:?} once");
    }
    accepting.abort();
}

#[tokio::test]
async fn a_full_channel_holds_up_no_check_without_news() {
    let (server, address) = listener("127.0.0.1:0").await;
    let mut bench = Bench::start([check_of(address)], 1);
    assert!(bench.verdict().await.up);
    let (sender, mut full) = mpsc::channel(1);
    sender.send(Verdict { id: 7, up: true, weight: None, error: None }).await.unwrap();
    let (other, other_address) = listener("127.0.0.1:0").await;
    let mut blocked = Runner::new(sender, bench.here.clone(), Files::open(), bench.cancel.clone());
    blocked.set(vec![
        Target { id: 8, check: check_of(other_address), up: true },
        Target { id: 9, check: check_of(address), up: true },
    ]);
    // Both of the second runner wait for room; the first goes on.
    let (_first, _) = timeout(LONG, other.accept()).await.unwrap().unwrap();
    for _ in 0..5 {
        timeout(LONG, server.accept()).await.unwrap().unwrap();
    }
    let ids: HashSet<_> =
        [full.recv().await, full.recv().await, full.recv().await].map(|v| v.unwrap().id).into();
    assert_eq!(ids, HashSet::from([7, 8, 9]));
    bench.cancel.cancel();
    blocked.stopped().await;
}

#[tokio::test]
async fn silent_servers_do_not_hold_up_the_others() {
    let (silent, _held) = full_backlog();
    let (server, address) = listener("127.0.0.1:0").await;
    let accepting = tokio::spawn(accept_all(server));
    let mut slow = check_of(silent);
    Arc::make_mut(&mut slow.timing).connect_timeout = Duration::from_secs(2);
    let mut bench = Bench::start(std::iter::repeat_n(slow, 20).chain([check_of(address)]), 64);
    assert_eq!(bench.verdict().await.id, 20);
    let late = bench.verdict().await;
    assert_eq!(late.error, Some(ConnectError::Timeout(Duration::from_secs(2)).into()));
    accepting.abort();
}

#[tokio::test]
async fn no_more_probes_are_under_way_than_there_are_slots() {
    let (server, address) = listener("127.0.0.1:0").await;
    let (slots, asker) = (Slots::new(1, ""), OnceLock::new());
    let (sender, _verdicts) = mpsc::channel(8);
    let (_cut, _have, here) = host();
    let target = |id| Target { id, check: http_check_of(address), up: true };
    let serve = async {
        let (held, _) = server.accept().await.unwrap();
        assert!(timeout(Duration::from_millis(300), server.accept()).await.is_err(), "the slot is taken");
        drop(held);
        server.accept().await.unwrap();
    };
    tokio::select! {
        _ = async { tokio::join!(
            watch(target(0), &slots, &sender, here.clone(), &asker),
            watch(target(1), &slots, &sender, here, &asker),
        ) } => {}
        () = serve => return,
    }
    panic!("checks do not end");
}

#[tokio::test]
async fn cancelling_ends_all_tasks_and_closes_their_sockets() {
    let (server, address) = listener("127.0.0.1:0").await;
    let bench = Bench::start([http_check_of(address)], 1);
    let (mut stream, _) = timeout(LONG, server.accept()).await.unwrap().unwrap();
    bench.cancel.cancel();
    timeout(LONG, bench.runner.stopped()).await.expect("tasks that end");
    let mut request = Vec::new();
    // The request, then the end: the socket of the probe under way is closed.
    timeout(LONG, stream.read_to_end(&mut request)).await.unwrap().unwrap();
}

#[tokio::test]
async fn tasks_end_when_nobody_takes_their_verdicts() {
    let (_server, address) = listener("127.0.0.1:0").await;
    let Bench { runner, verdicts, cancel: _cancel, isolated: _isolated, held: _held, .. } =
        Bench::start([check_of(address)], 1);
    drop(verdicts);
    timeout(LONG, runner.stopped()).await.expect("tasks that end");
}

#[tokio::test]
async fn a_program_that_changes_the_weight_is_heard_without_a_change_of_state() {
    let file = std::env::temp_dir().join(format!("lvsd-weight-{}", std::process::id()));
    std::fs::write(&file, "7").unwrap();
    let words = ["/bin/sh", "-c", "exit $(cat \"$0\")", file.to_str().unwrap()].map(str::to_owned);
    let account = Account { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw() };
    let script = Script::new(words.into(), account).unwrap();
    let misc = MiscCheck { script, timeout: LONG, dynamic: true };
    let (_server, address) = listener("127.0.0.1:0").await;
    let mut bench = Bench::start([Check { kind: CheckKind::Misc(Box::new(misc)), ..check_of(address) }], 8);
    let says = |weight| Verdict { id: 0, up: true, weight: Some(Weight::To(weight)), error: None };
    assert_eq!(bench.verdict().await, says(5));
    // In one step: a program may read at any time.
    let change = |code: &str| {
        let new = file.with_extension("new");
        std::fs::write(&new, code).unwrap();
        std::fs::rename(&new, &file).unwrap();
    };
    change("3");
    assert_eq!(bench.verdict().await, says(1));
    change("0");
    sleep(Duration::from_millis(300)).await;
    assert!(bench.verdicts.is_empty(), "0 leaves the weight as it was");
    change("1");
    let down = bench.verdict().await;
    assert_eq!((down.up, down.error.unwrap().to_string().as_str()), (false, "the program ended with 1"));
    std::fs::remove_file(&file).unwrap();
}

#[tokio::test]
async fn a_file_says_the_weight_and_the_end() {
    let path = std::env::temp_dir().join(format!("lvsd-file-check-{}", std::process::id()));
    std::fs::write(&path, "3").unwrap();
    let kind = CheckKind::File(FileCheck { path: path.clone(), weight: 2, reverse: false });
    let (_server, address) = listener("127.0.0.1:0").await;
    let mut bench = Bench::start([Check { kind, ..check_of(address) }], 8);
    let files = bench.runner.files.clone();
    tokio::spawn(files.run(bench.cancel.clone()));
    let says = |change| Verdict { id: 0, up: true, weight: Some(Weight::By(change)), error: None };
    assert_eq!(bench.verdict().await, says(6));
    std::fs::write(&path, "-32768").unwrap();
    let down = bench.verdict().await;
    assert_eq!(
        (down.up, down.error.unwrap().to_string().as_str()),
        (false, "the file takes 65536 from the weight")
    );
    std::fs::remove_file(&path).unwrap();
    assert_eq!(bench.verdict().await, says(0));
}
