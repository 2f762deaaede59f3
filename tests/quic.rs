//! Does a QUIC connection keep its real server when its client's address changes?

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use lvs_tests::{Director, Need, Node, PATIENCE, Scene, Status, VIP, Vrrp, require, wait_for};
use quinn::{
    ClientConfig, Connection, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, ServerConfig,
    TokioRuntime,
    rustls::{
        RootCertStore,
        pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    },
};
use tokio::{runtime::Runtime, time::timeout};

const QUIC: SocketAddrV4 = SocketAddrV4::new(*VIP.ip(), 443);
/// A second one of the client's.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 19);
/// So often a client changes its address.
const MOVES: u16 = 12;
/// Of a connection that is lost: some retransmissions.
const SILENCE: Duration = Duration::from_secs(3);
const CONFIG_ID: u8 = 2;

/// Connection IDs as draft-ietf-quic-load-balancers has them: first octet, server ID, nonce.
struct Named([u8; 2], u64);

impl ConnectionIdGenerator for Named {
    fn generate_cid(&mut self) -> ConnectionId {
        self.1 += 1;
        let Self([high, low], nonce) = *self;
        let nonce = nonce.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
        ConnectionId::new(&[&[CONFIG_ID << 5 | 10, high, low], &nonce[..]].concat())
    }

    fn cid_len(&self) -> usize {
        11
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Real servers that each say their name on every stream, and what clients need to trust them.
struct Site {
    runtime: Runtime,
    trust: ClientConfig,
    _servers: Vec<Endpoint>,
    lb1: Director,
    scene: Scene,
}

impl Site {
    /// `word`: a line of virtual_server.
    fn new(word: &str) -> Result<Self> {
        let scene = Scene::new()?;
        scene.client.run(&format!("ip address add {OTHER}/24 dev eth0"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let own = rcgen::generate_simple_self_signed(["lab".to_owned()])?;
        let certificate = CertificateDer::from(own.cert);
        let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der());
        let server = ServerConfig::with_single_cert(vec![certificate.clone()], key.into())?;
        let mut roots = RootCertStore::empty();
        roots.add(certificate)?;
        let trust = ClientConfig::with_root_certificates(Arc::new(roots))?;

        let mut service = format!(
            "virtual_server {} {} {{\n lvs_sched mh\n mh-port\n lvs_method DR\n protocol UDP\n{word}",
            QUIC.ip(),
            QUIC.port()
        );
        let mut servers = Vec::new();
        for (real, number) in scene.reals.iter().zip(1..) {
            service += &format!(" real_server {} 443 {{\n", real.node.address());
            if !word.is_empty() {
                service += &format!("  quic_server_id a5{number:02x}\n");
            }
            service += " }\n";
            servers.push(serve(&runtime, &real.node, server.clone(), [0xa5, number])?);
        }
        let vrrp = Vrrp::v3(150, Duration::from_millis(100)).text();
        let lb1 = Director::start(&scene.lb1, &(vrrp + &service + "}\n"))?;
        lb1.wait_for_state("MASTER", PATIENCE)?;
        let site = Self { runtime, trust, _servers: servers, lb1, scene };
        wait_for("an answer of each real server", PATIENCE, || {
            let reached: BTreeMap<_, _> = (30_000..30_012)
                .filter_map(|port| Some((site.client(port).ok()?.name(&site).ok()?, ())))
                .collect();
            Ok((reached.len() == site.scene.reals.len()).then_some(()))
        })?;
        Ok(site)
    }

    /// A connection from that port.
    fn client(&self, port: u16) -> Result<Client> {
        let _guard = self.runtime.enter();
        let socket = bind(&self.scene.client, (self.scene.client.address(), port))?;
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?;
        let connecting = endpoint.connect_with(self.trust.clone(), QUIC.into(), "lab")?;
        let connection = self.runtime.block_on(async { timeout(PATIENCE, connecting).await })??;
        Ok(Client { endpoint, connection })
    }
}

struct Client {
    endpoint: Endpoint,
    connection: Connection,
}

impl Client {
    /// Goes on from another address without a word, as when a NAT forgets it.
    fn goes_to(&self, site: &Site, address: (Ipv4Addr, u16)) -> Result<()> {
        let _guard = site.runtime.enter();
        Ok(self.endpoint.rebind(bind(&site.scene.client, address)?)?)
    }

    /// What the connection's real server is called.
    fn name(&self, site: &Site) -> Result<String> {
        self.name_within(site, PATIENCE)
    }

    fn name_within(&self, site: &Site, limit: Duration) -> Result<String> {
        let asked = async {
            let (mut send, mut receive) = self.connection.open_bi().await?;
            send.write_all(b"who?").await?;
            send.finish()?;
            anyhow::Ok(String::from_utf8(receive.read_to_end(64).await?)?)
        };
        site.runtime.block_on(async { timeout(limit, asked).await })?
    }
}

fn bind(node: &Node, address: (Ipv4Addr, u16)) -> Result<UdpSocket> {
    node.in_ns(|| UdpSocket::bind(address).with_context(|| format!("{address:?}")))
}

fn serve(runtime: &Runtime, node: &Node, config: ServerConfig, id: [u8; 2]) -> Result<Endpoint> {
    let _guard = runtime.enter();
    let mut ids = EndpointConfig::default();
    ids.cid_generator(move || Box::new(Named(id, 0)));
    let socket = bind(node, (*QUIC.ip(), QUIC.port()))?;
    let endpoint = Endpoint::new(ids, Some(config), socket, Arc::new(TokioRuntime))?;
    let (accepting, name) = (endpoint.clone(), node.name().to_owned());
    runtime.spawn(async move {
        while let Some(incoming) = accepting.accept().await {
            let name = name.clone();
            tokio::spawn(async move {
                let connection = incoming.await?;
                loop {
                    let (mut send, mut receive) = connection.accept_bi().await?;
                    receive.read_to_end(64).await?;
                    send.write_all(name.as_bytes()).await?;
                    send.finish()?;
                }
                #[expect(unreachable_code, reason = "it names the error")]
                anyhow::Ok(())
            });
        }
    });
    Ok(endpoint)
}

/// Where a client goes, one address after the other.
fn journey(site: &Site, first: u16) -> impl Iterator<Item = (Ipv4Addr, u16)> {
    let home = site.scene.client.address();
    (first..first + MOVES).map(move |port| (if port % 3 == 0 { OTHER } else { home }, port))
}

#[test]
fn connections_keep_their_real_server_over_a_dozen_addresses() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let mut site = Site::new(&format!(" quic_config_id {CONFIG_ID}\n"))?;
    for number in 0..3 {
        let client = site.client(20_000 + number)?;
        let name = client.name(&site)?;
        for address in journey(&site, 21_000 + number * 100) {
            client.goes_to(&site, address)?;
            let now = client.name(&site).with_context(|| format!("{name}, from {address:?}"))?;
            ensure!(now == name, "{name} was left for {now} at {address:?}");
        }
    }
    let client = site.client(22_000)?;
    let name = client.name(&site)?;
    let real = site.scene.reals.iter().find(|real| real.name() == name).context("a stranger")?;
    let real = format!("{}:443", real.node.address());
    site.lb1.order(&["drain", &format!("udp:{QUIC}"), &real])?;
    for address in journey(&site, 23_000) {
        client.goes_to(&site, address)?;
        ensure!(client.name(&site)? == name, "a real server that drains has lost its connection");
    }
    ensure!(
        (24_000..24_010)
            .all(|port| site.client(port).and_then(|it| it.name(&site)).is_ok_and(|it| it != name))
    );
    // The next daemon finds the IDs that it left.
    site.lb1.hand_over()?;
    site.lb1.start_again()?;
    for address in journey(&site, 25_000) {
        client.goes_to(&site, address)?;
        ensure!(client.name(&site)? == name, "a restart has lost a connection");
    }
    let Status { quic, drifts, .. } = site.lb1.status()?;
    ensure!(drifts.values().all(|count| *count == 0), "{drifts:?}");
    ensure!(quic.get("led").is_some_and(|led| *led > 100), "{quic:?}");
    ensure!(["unknown_id", "dead_real"].iter().all(|it| quic.get(*it) == Some(&0)), "{quic:?}");
    Ok(())
}

#[test]
fn without_server_ids_a_connection_is_lost_with_its_clients_address() -> Result<()> {
    if !require(&[Need::Lab, Need::Lvsd]) {
        return Ok(());
    }
    let site = Site::new("")?;
    let client = site.client(20_000)?;
    client.name(&site)?;
    // One of three addresses leads to the same real server by chance.
    for address in journey(&site, 21_000) {
        client.goes_to(&site, address)?;
        if client.name_within(&site, SILENCE).is_err() {
            return Ok(());
        }
    }
    bail!("the other test proves nothing: {MOVES} addresses lead to one real server")
}
