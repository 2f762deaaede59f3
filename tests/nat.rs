//! Do clients and real servers that know nothing of the VIP reach each other through a director that translates?

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use lvs_tests::{
    Conversation, Director, Lab, Need, Node, PATIENCE, Process, Sum, VIP, Vrrp, get, require, serve, wait_for,
};

/// The real servers' gateway: an address of the VRRP instance, like the VIP.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 100);
/// A second service of the same real servers and ports.
const SECOND: SocketAddrV4 = SocketAddrV4::new(*VIP.ip(), 8080);
const ECHO: SocketAddrV4 = SocketAddrV4::new(*VIP.ip(), 7);
/// Where the real servers have it.
const ECHO_PORT: u16 = 7007;
const BULK: SocketAddrV4 = SocketAddrV4::new(*VIP.ip(), 9);
const BULK_PORT: u16 = 9009;
const BULK_LENGTH: usize = 100 << 20;
const MASTER: u8 = 150;
const BACKUP: u8 = 100;

#[derive(Clone, Copy, PartialEq)]
enum Arms {
    /// Clients and real servers are on one segment, in two networks.
    One,
    Two,
}

struct Site {
    client: Node,
    reals: Vec<Node>,
    directors: Vec<Node>,
    _servers: Vec<Process>,
    lab: Lab,
}

impl Site {
    fn new(arms: Arms) -> Result<Self> {
        let mut lab = Lab::new()?;
        let client = lab.host("client", Ipv4Addr::new(10, 77, 0, 9))?;
        client.run(&format!("ip route add 10.88.0.0/24 via {}", VIP.ip()))?;
        let mut directors = Vec::new();
        if arms == Arms::Two {
            lab.switch().run("ip link add br1 type bridge forward_delay 0 mcast_snooping 0")?;
            lab.switch().run("ip link set br1 up")?;
        }
        for number in 1..=2 {
            let name = format!("lb{number}");
            let director = lab.host(&name, Ipv4Addr::new(10, 77, 0, number))?;
            director.sysctl("ipv4.ip_forward", "1")?;
            let inside = if arms == Arms::Two {
                let port = format!("{name}-in");
                let peer = format!("peer name eth1 netns {}", director.namespace());
                lab.switch().run(&format!("ip link add {port} type veth {peer}"))?;
                lab.switch().run(&format!("ip link set {port} master br1 up"))?;
                lab.switch().run(&format!("ethtool -K {port} gro on"))?;
                director.run("ethtool -K eth1 tx off")?;
                director.run("ip link set eth1 up")?;
                "eth1"
            } else {
                "eth0"
            };
            for interface in ["all", inside] {
                director.sysctl(&format!("ipv4.conf.{interface}.send_redirects"), "0")?;
            }
            director.run(&format!("ip address add 10.88.0.{number}/24 dev {inside}"))?;
            directors.push(director);
        }
        let (mut reals, mut servers) = (Vec::new(), Vec::new());
        for number in 1..=2 {
            let name = format!("rs{number}");
            let real = lab.host(&name, Ipv4Addr::new(10, 88, 0, 10 + number))?;
            if arms == Arms::Two {
                lab.switch().run(&format!("ip link set {name} master br1"))?;
            }
            real.run(&format!("ip route add default via {GATEWAY}"))?;
            servers.push(serve(&real)?);
            reals.push(real);
        }
        // Every host here leaves its checksums to a card.
        for node in reals.iter().chain([&client]) {
            node.run("ethtool -K eth0 tx on")?;
        }
        Ok(Self { client, reals, directors, _servers: servers, lab })
    }

    fn start(&self, number: usize, priority: u8, arms: Arms, services: &str) -> Result<Director> {
        let vrrp = Vrrp::v3(priority, Duration::from_millis(100)).text();
        let vip = format!("{}/24", VIP.ip());
        let device = if arms == Arms::Two { " dev eth1" } else { "" };
        let vrrp = vrrp.replace(&vip, &format!("{vip}\n        {GATEWAY}/24{device}"));
        Director::start(self.directors.get(number).context("no such director")?, &(vrrp + services))
    }

    /// NAT is what a virtual_server without lvs_method has.
    fn service(&self, address: SocketAddrV4, protocol: &str, port: u16, check: &str) -> String {
        let reals = self
            .reals
            .iter()
            .map(|real| format!("    real_server {} {port} {{\n        {check}\n    }}\n", real.address()));
        format!(
            "virtual_server {} {} {{\n    lvs_sched mh\n    mh-port\n    protocol {protocol}\n    delay_loop 0.2\n{}}}\n",
            address.ip(),
            address.port(),
            reals.collect::<String>()
        )
    }

    fn web(&self, address: SocketAddrV4) -> String {
        self.service(address, "TCP", VIP.port(), "TCP_CHECK { }")
    }

    fn answers(&self, to: SocketAddrV4, ports: std::ops::Range<u16>) -> Result<Vec<String>> {
        self.client.in_ns(|| ports.map(|port| get(to, Some(port)).context("a request")).collect())
    }

    fn wait_for(&self, service: SocketAddrV4) -> Result<()> {
        self.client.in_ns(|| wait_for("an answer", PATIENCE, || Ok(get(service, None).ok().map(drop))))
    }
}

#[test]
fn requests_and_answers_are_translated_one_armed_and_between_two_interfaces() -> Result<()> {
    for arms in [Arms::One, Arms::Two] {
        if !require(&[Need::Lab, Need::Lvsd]) {
            return Ok(());
        }
        let site = Site::new(arms)?;
        let lb1 = site.start(0, MASTER, arms, &site.web(SECOND))?;
        lb1.wait_for_state("MASTER", PATIENCE)?;
        site.wait_for(SECOND)?;
        let names = site.answers(SECOND, 20_000..20_200)?;
        for real in &site.reals {
            let answered = names.iter().filter(|name| *name == real.name()).count();
            ensure!(answered > 60, "{} answered {answered} of 200 requests", real.name());
        }
        // The client never had to ask twice, though nobody had told the kernel of its MAC.
        let replies = outcome(&lb1, if arms == Arms::One { "nat_reply" } else { "nat_reply_redirected" })?;
        ensure!(replies > 800, "only {replies} answers were translated");
        // What a real server begins itself passes through the director as through any router.
        let own = site.reals.first().context("no rs1")?;
        let listener = site.client.in_ns(|| Ok(TcpListener::bind((site.client.address(), 25))?))?;
        let peer = own.in_ns(|| {
            let stream = TcpStream::connect((site.client.address(), 25))?;
            let (accepted, peer) = listener.accept()?;
            drop((accepted, stream));
            Ok(peer)
        })?;
        ensure!(peer.ip() == own.address(), "the real server's own connection came from {peer}");
        ensure!(lb1.status()?.services.iter().flat_map(|s| &s.reals).all(|real| real.state == "up"));
    }
    Ok(())
}

#[test]
fn services_that_share_their_real_servers_are_told_apart_and_udp_is_answered() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let site = Site::new(Arms::One)?;
    for real in &site.reals {
        let socket = real.in_ns(|| Ok(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, ECHO_PORT))?))?;
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        });
    }
    let echo = site.service(ECHO, "UDP", ECHO_PORT, "");
    let lb1 = site.start(0, MASTER, Arms::One, &(site.web(VIP) + &site.web(SECOND) + &echo))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    for service in [VIP, SECOND] {
        site.wait_for(service)?;
        ensure!(site.answers(service, 20_000..20_050)?.len() == 50);
    }
    site.client.in_ns(|| {
        for port in 30_000..30_100 {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(ECHO)?;
            let query = port.to_be_bytes().repeat(500);
            socket.send(&query)?;
            let mut answer = [0; 2048];
            let length = socket.recv(&mut answer).with_context(|| format!("from port {port}"))?;
            ensure!(answer.get(..length) == Some(&query[..]), "another answer than the query");
        }
        Ok(())
    })?;
    Ok(())
}

#[test]
fn connections_survive_the_death_of_their_director_whoever_speaks_next() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let site = Site::new(Arms::One)?;
    serve_bulk(&site)?;
    let services = site.web(SECOND) + &site.service(BULK, "TCP", BULK_PORT, "");
    let lb1 = site.start(0, MASTER, Arms::One, &services)?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    let lb2 = site.start(1, BACKUP, Arms::One, &services)?;
    site.wait_for(SECOND)?;
    let mut talks = site.client.in_ns(|| {
        let begin = |port| Conversation::begin(SECOND, port).context("a connection");
        (20_000..20_040).map(begin).collect::<Result<Vec<_>>>()
    })?;
    // The real server alone has something to say in these.
    let mut downloads = site.client.in_ns(|| {
        let begin = |_| {
            let mut stream = TcpStream::connect(BULK)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"s")?;
            let mut first = [0];
            stream.read_exact(&mut first)?;
            Ok(stream)
        };
        (0..10).map(begin).collect::<Result<Vec<_>>>()
    })?;
    let mut lb1 = lb1;
    lb1.kill()?;
    site.lab.unplug(lb1.node())?;
    lb2.wait_for_state("MASTER", PATIENCE)?;
    for stream in &mut downloads {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).context("what the real server goes on to say")?;
        ensure!(rest.len() == usize::from(SLOW_LENGTH) - 1, "a download of {} bytes", rest.len());
    }
    for talk in &mut talks {
        talk.go_on()?;
    }
    for talk in talks {
        talk.end().context("a connection that was there before")?;
    }
    println!("outcomes of the second director: {:?}", lb2.status()?.outcomes);
    Ok(())
}

#[test]
fn a_hundred_megabytes_arrive_as_they_were_sent() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let site = Site::new(Arms::Two)?;
    serve_bulk(&site)?;
    let bulk = site.service(BULK, "TCP", BULK_PORT, "");
    let lb1 = site.start(0, MASTER, Arms::Two, &(site.web(SECOND) + &bulk))?;
    lb1.wait_for_state("MASTER", PATIENCE)?;
    site.wait_for(SECOND)?;
    let (length, sum) = site.client.in_ns(|| {
        let mut stream = TcpStream::connect(BULK)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"b")?;
        let (mut length, mut sum) = (0, Sum::default());
        let mut buffer = vec![0; 1 << 16];
        loop {
            let read = stream.read(&mut buffer).with_context(|| format!("after {length} bytes"))?;
            if read == 0 {
                return Ok((length, sum));
            }
            sum.add(buffer.get(..read).context("more than there is room for")?);
            length += read;
        }
    })?;
    let mut sent = Sum::default();
    (0..BULK_LENGTH / BLOCK).for_each(|number| sent.add(&block(number)));
    ensure!((length, sum) == (BULK_LENGTH, sent), "{length} bytes, or others than were sent");
    Ok(())
}

const SLOW_LENGTH: u8 = 20;
const BLOCK: usize = 1 << 16;

/// Answers `b` with much, `s` with a byte now and then.
fn serve_bulk(site: &Site) -> Result<()> {
    for real in &site.reals {
        let listener = real.in_ns(|| Ok(TcpListener::bind((Ipv4Addr::UNSPECIFIED, BULK_PORT))?))?;
        thread::spawn(move || {
            for stream in listener.incoming() {
                // Whoever went away gets no more.
                thread::spawn(|| stream.and_then(answer_bulk).ok());
            }
        });
    }
    Ok(())
}

fn answer_bulk(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut what = [0];
    stream.read_exact(&mut what)?;
    if what == *b"s" {
        for byte in 0..SLOW_LENGTH {
            stream.write_all(&[byte])?;
            thread::sleep(Duration::from_millis(100));
        }
        return Ok(());
    }
    (0..BULK_LENGTH / BLOCK).try_for_each(|number| stream.write_all(&block(number)))
}

/// No two are alike.
fn block(number: usize) -> Vec<u8> {
    let mut state = number as u64 + 1;
    let mut words = Vec::with_capacity(BLOCK);
    while words.len() < BLOCK {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        words.extend((state >> 32).to_ne_bytes());
    }
    words
}

fn outcome(director: &Director, name: &str) -> Result<u64> {
    director.status()?.outcomes.get(name).copied().with_context(|| format!("no counter {name}"))
}
