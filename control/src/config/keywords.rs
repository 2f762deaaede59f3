//! Which words there are, where each may stand, and what lvsd makes of it.
//!
//! One table feeds the reader, the suggestions in diagnostics and the documentation.

use std::{collections::HashMap, sync::LazyLock};

use Block::*;

/// A word in one block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keyword {
    pub word: &'static str,
    /// The word that the reader asks for: synonyms share it.
    pub canonical: &'static str,
    pub block: Block,
    pub status: Status,
    /// The block that follows the word.
    pub opens: Option<Block>,
    /// May stand more than once in its block.
    pub repeats: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Supported,
    /// Supported, with the name that replaced it.
    Deprecated(&'static str),
    /// Named in a warning, with what follows from its absence.
    NotYet(&'static str),
    /// Without effect for good, with the reason.
    Ignored(&'static str),
}

macro_rules! blocks {
    ($($block:ident = $name:literal,)+) => {
        /// Where a word may stand.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Block { $($block,)+ }

        impl Block {
            #[cfg(test)]
            const ALL: &'static [Block] = &[$(Block::$block,)+];

            pub const fn name(self) -> &'static str {
                match self { $(Block::$block => $name,)+ }
            }
        }
    };
}

blocks! {
    Top = "the top level",
    GlobalDefs = "global_defs",
    VrrpInstance = "vrrp_instance",
    Authentication = "authentication",
    AuthHmac = "auth_hmac",
    SyncGroup = "vrrp_sync_group",
    VrrpScript = "vrrp_script",
    TrackProcess = "vrrp_track_process",
    TrackFile = "track_file",
    TrackGroup = "track_group",
    GarpGroup = "garp_group",
    VirtualServer = "virtual_server",
    RealServer = "real_server",
    TcpCheck = "TCP_CHECK",
    HttpGet = "HTTP_GET",
    SslGet = "SSL_GET",
    Url = "url",
    SmtpCheck = "SMTP_CHECK",
    SmtpHost = "host",
    DnsCheck = "DNS_CHECK",
    UdpCheck = "UDP_CHECK",
    PingCheck = "PING_CHECK",
    MiscCheck = "MISC_CHECK",
    FileCheck = "FILE_CHECK",
    BfdCheck = "BFD_CHECK",
    Ssl = "SSL",
    BfdInstance = "bfd_instance",
    // Lines that are values, such as addresses.
    Entries = "a list",
}

impl Block {
    /// For a message.
    pub fn place(self) -> String {
        if self == Top { format!("at {}", self.name()) } else { format!("in {}", self.name()) }
    }
}

/// The word in that block.
pub fn find(block: Block, word: &str) -> Option<&'static Keyword> {
    INDEX.get(word)?.iter().find(|keyword| keyword.block == block)
}

/// Where the word may stand, for a message; the blocks that are read come first.
pub fn homes(word: &str) -> Option<String> {
    const SHOWN: usize = 4;
    let mut found: Vec<_> = INDEX.get(word)?.iter().collect();
    found.sort_by_key(|keyword| matches!(keyword.status, Status::NotYet(_)));
    match found.as_slice() {
        [only] => Some(only.block.place()),
        found => {
            let names: Vec<_> = found.iter().take(SHOWN).map(|keyword| keyword.block.name()).collect();
            Some(format!("in {}", names.join(" or ")))
        }
    }
}

/// The word opens a block that stands in no other.
pub fn only_at_top(word: &str) -> bool {
    INDEX
        .get(word)
        .is_some_and(|found| found.iter().all(|keyword| keyword.block == Top && keyword.opens.is_some()))
}

/// The word of that block that was probably meant.
pub fn nearest(block: Block, word: &str) -> Option<&'static Keyword> {
    let here = INDEX.values().flatten().filter(|keyword| keyword.block == block);
    find(block, nearest_of(here.map(|keyword| keyword.word), word)?)
}

/// The word of any block that was probably meant.
pub fn nearest_anywhere(word: &str) -> Option<&'static Keyword> {
    INDEX.get(nearest_of(INDEX.keys().copied(), word)?)?.first()
}

/// The candidate that was probably meant by `word`.
pub fn nearest_of<'a>(candidates: impl Iterator<Item = &'a str>, word: &str) -> Option<&'a str> {
    const LONGEST: usize = 40;
    if word.len() > LONGEST {
        return None;
    }
    let typed = word.to_ascii_lowercase();
    candidates
        .map(|candidate| (strsim::osa_distance(&candidate.to_ascii_lowercase(), &typed), candidate))
        .filter(|(distance, candidate)| *distance <= candidate.len().div_ceil(3).min(candidate.len() / 2))
        .min()
        .map(|(_, candidate)| candidate)
}

static INDEX: LazyLock<HashMap<&'static str, Vec<Keyword>>> = LazyLock::new(|| {
    let mut index: HashMap<_, Vec<Keyword>> = HashMap::new();
    for keyword in keywords() {
        index.entry(keyword.word).or_default().push(keyword);
    }
    index
});

pub fn keywords() -> impl Iterator<Item = Keyword> {
    TABLE.iter().flat_map(|row| {
        row.blocks.iter().flat_map(move |&block| {
            row.words.split_ascii_whitespace().flat_map(move |synonyms| {
                let first = synonyms.split('|').next().unwrap_or(synonyms);
                let canonical = if let Status::Deprecated(by) = row.status { by } else { first };
                synonyms.split('|').map(move |word| Keyword {
                    word,
                    canonical,
                    block,
                    status: row.status,
                    opens: row.opens,
                    repeats: row.repeats,
                })
            })
        })
    })
}

/// The table as a page of the documentation shows it.
#[cfg(test)]
pub fn markdown_table() -> String {
    let mut text = String::new();
    for &block in Block::ALL {
        let rows: Vec<_> = TABLE.iter().filter(|row| row.blocks.contains(&block)).collect();
        if rows.is_empty() {
            continue;
        }
        text.push_str(&format!("\n### {}\n\n| words | |\n|---|---|\n", block.name()));
        for row in rows {
            let words: Vec<_> = row
                .words
                .split_ascii_whitespace()
                .map(|word| format!("`{}`", word.replace('|', "` = `")))
                .collect();
            let status = match row.status {
                Status::Supported => "read".to_owned(),
                Status::Deprecated(by) => format!("read; old name of `{by}`"),
                Status::NotYet("") => "not supported yet".to_owned(),
                Status::NotYet(effect) => format!("not supported yet: {effect}"),
                Status::Ignored(reason) => format!("no effect: {reason}"),
            };
            text.push_str(&format!("| {} | {status} |\n", words.join(", ")));
        }
    }
    text
}

/// Words of the same blocks and the same fate.
struct Row {
    blocks: &'static [Block],
    /// Blanks between words, `|` between synonyms.
    words: &'static str,
    status: Status,
    opens: Option<Block>,
    repeats: bool,
}

impl Row {
    const fn new(blocks: &'static [Block], words: &'static str, status: Status) -> Self {
        Self { blocks, words, status, opens: None, repeats: false }
    }

    const fn opens(self, block: Block) -> Self {
        Self { opens: Some(block), ..self }
    }

    const fn repeats(self) -> Self {
        Self { repeats: true, ..self }
    }
}

const fn read(blocks: &'static [Block], words: &'static str) -> Row {
    Row::new(blocks, words, Status::Supported)
}

const fn not_yet(blocks: &'static [Block], words: &'static str, effect: &'static str) -> Row {
    Row::new(blocks, words, Status::NotYet(effect))
}

const fn ignored(blocks: &'static [Block], words: &'static str, reason: &'static str) -> Row {
    Row::new(blocks, words, Status::Ignored(reason))
}

const CONNECTING: &[Block] = &[TcpCheck, HttpGet, SslGet, SmtpCheck, DnsCheck, UdpCheck, PingCheck];
const CHECKS: &[Block] = &[TcpCheck, HttpGet, SslGet, SmtpCheck, DnsCheck, UdpCheck, PingCheck, MiscCheck];
const NO_SCRIPTS: &str = "the script is not run";
const NO_MAIL: &str = "no mail is sent";
const UNCHECKED: &str = "the real server is not checked by it";
const NO_IPVS: &str = "packets go through XDP, there is no IPVS";
const NO_FIREWALL: &str = "XDP sees packets before any firewall table";
const ONE_PROCESS: &str = "lvsd is one process";
const OWN_SNMP: &str = "there is no SNMP agent: read `lvsd status --json`";
const OWN_DBUS: &str = "there is no D-Bus service: read `lvsd status --json`";

const TABLE: &[Row] = &[
    read(&[Top], "include").repeats(),
    read(&[Top], "global_defs").opens(GlobalDefs).repeats(),
    read(&[Top], "vrrp_instance").opens(VrrpInstance).repeats(),
    read(&[Top], "virtual_server").opens(VirtualServer).repeats(),
    read(&[Top], "vrrp_sync_group").opens(SyncGroup).repeats(),
    read(&[Top], "vrrp_script").opens(VrrpScript).repeats(),
    read(&[Top], "vrrp_track_process").opens(TrackProcess).repeats(),
    read(&[Top], "track_file").opens(TrackFile).repeats(),
    Row::new(&[Top], "vrrp_track_file", Status::Deprecated("track_file")).opens(TrackFile).repeats(),
    not_yet(&[Top], "track_group", "").opens(TrackGroup).repeats(),
    not_yet(&[Top], "garp_group", "announcements are not paced").opens(GarpGroup).repeats(),
    not_yet(&[Top], "static_ipaddress static_routes static_rules", "set them with the system's own tools")
        .opens(Entries)
        .repeats(),
    not_yet(&[Top], "interface_up_down_delays", "a link change counts at once").opens(Entries),
    not_yet(&[Top], "virtual_server_group", "").opens(Entries).repeats(),
    read(&[Top], "SSL").opens(Ssl),
    not_yet(&[Top], "bfd_instance", "").opens(BfdInstance).repeats(),
    not_yet(&[Top], "net_namespace instance", "lvsd stays where it was started"),
    ignored(&[Top], "linkbeat_interfaces", "link changes come from netlink").opens(Entries),
    ignored(&[Top, VrrpInstance], "linkbeat_use_polling", "link changes come from netlink"),
    ignored(&[Top], "net_namespace_ipvs namespace_with_ipsets", NO_IPVS),
    ignored(&[Top], "use_pid_dir child_wait_time", ONE_PROCESS),
    //
    read(&[GlobalDefs], "router_id vrrp_version checker_log_all_failures lvs_timeouts"),
    read(
        &[GlobalDefs],
        "vrrp_garp_master_delay vrrp_garp_master_repeat vrrp_garp_master_refresh vrrp_garp_master_refresh_repeat",
    ),
    not_yet(&[GlobalDefs], "notification_email", NO_MAIL).opens(Entries),
    not_yet(
        &[GlobalDefs],
        "notification_email_from smtp_server smtp_helo_name smtp_connect_timeout smtp_alert smtp_alert_vrrp \
         smtp_alert_checker no_email_faults no_checker_emails",
        NO_MAIL,
    ),
    not_yet(
        &[GlobalDefs],
        "startup_script startup_script_timeout shutdown_script shutdown_script_timeout",
        "no script is run",
    ),
    read(
        &[GlobalDefs],
        "script_user enable_script_security notify_fifo vrrp_notify_fifo lvs_notify_fifo rs_init_notifies",
    ),
    // lvsd's own.
    read(&[GlobalDefs], "admin_group"),
    not_yet(
        &[GlobalDefs],
        "use_symlink_paths",
        "programs are called by their last path and the name in the file",
    ),
    not_yet(&[GlobalDefs], "set_supplementary_groups", "scripts have one group"),
    not_yet(&[GlobalDefs], "notify_fifo_script vrrp_notify_fifo_script lvs_notify_fifo_script", NO_SCRIPTS),
    not_yet(&[GlobalDefs], "vrrp_notify_priority_changes", "a FIFO is told of states only"),
    not_yet(&[GlobalDefs], "fifo_write_vrrp_states_on_reload", "there is no reload yet"),
    not_yet(&[GlobalDefs], "vrrp_mcast_group4", "adverts go to 224.0.0.18"),
    not_yet(&[GlobalDefs], "vrrp_mcast_group6", "there is no IPv6 yet"),
    not_yet(
        &[GlobalDefs],
        "vrrp_garp_lower_prio_delay vrrp_garp_lower_prio_repeat vrrp_garp_interval vrrp_gna_interval vrrp_min_garp \
         vrrp_garp_extra_if|vrrp_vmac_garp_intvl",
        "announcements keep their usual number and pace",
    ),
    read(&[GlobalDefs], "vrrp_down_timer_adverts v3_checksum_as_v2"),
    not_yet(
        &[GlobalDefs],
        "vrrp_lower_prio_no_advert vrrp_higher_prio_send_advert vrrp_check_unicast_src vrrp_skip_check_adv_addr \
         vrrp_strict vrrp_owner_ignore_adverts log_unknown_vrids vrrp_startup_delay vrrp_delay_after_boot",
        "the default applies",
    ),
    not_yet(&[GlobalDefs], "dynamic_interfaces default_interface disable_local_igmp", "the default applies"),
    not_yet(
        &[GlobalDefs],
        "reload_check_config reload_time_file reload_repeat reload_file include_check \
         config_save_dir data_use_instance json_version state_dump_file stats_dump_file json_dump_file umask random_seed",
        "",
    ),
    not_yet(&[GlobalDefs], "vmac_prefix vmac_addr_prefix", "there is no virtual MAC yet"),
    ignored(&[GlobalDefs], "lvs_sync_daemon", NO_IPVS),
    ignored(&[GlobalDefs], "lvs_flush lvs_flush_on_stop|lvs_flush_onstop", NO_IPVS),
    ignored(
        &[GlobalDefs],
        "process_names process_name vrrp_process_name checker_process_name|lvs_process_name bfd_process_name",
        ONE_PROCESS,
    ),
    ignored(
        &[GlobalDefs],
        "vrrp_priority checker_priority bfd_priority vrrp_no_swap checker_no_swap bfd_no_swap vrrp_rt_priority \
         checker_rt_priority bfd_rt_priority vrrp_cpu_affinity checker_cpu_affinity bfd_cpu_affinity \
         vrrp_rlimit_rttime|vrrp_rlimit_rtime checker_rlimit_rttime|checker_rlimit_rtime \
         bfd_rlimit_rttime|bfd_rlimit_rtime max_auto_priority min_auto_priority_delay",
        "VRRP has a real-time thread of its own, and nothing else needs one",
    ),
    ignored(
        &[GlobalDefs],
        "vrrp_iptables vrrp_ipsets nftables nftables_priority nftables_ifindex nftables_counters nftables_ipvs \
         nftables_ipvs_priority nftables_ipvs_start_fwmark",
        NO_FIREWALL,
    ),
    ignored(
        &[GlobalDefs],
        "snmp_socket enable_traps enable_snmp_vrrp enable_snmp_keepalived enable_snmp_rfc enable_snmp_rfcv2 \
         enable_snmp_rfcv3 enable_snmp_checker snmp_vs_stats_update_interval snmp_rs_stats_update_interval",
        OWN_SNMP,
    ),
    ignored(&[GlobalDefs], "enable_dbus dbus_service_name dbus_no_interface_name", OWN_DBUS),
    ignored(
        &[GlobalDefs],
        "vrrp_netlink_cmd_rcv_bufs vrrp_netlink_cmd_rcv_bufs_force vrrp_netlink_monitor_rcv_bufs \
         vrrp_netlink_monitor_rcv_bufs_force lvs_netlink_cmd_rcv_bufs lvs_netlink_cmd_rcv_bufs_force \
         lvs_netlink_monitor_rcv_bufs lvs_netlink_monitor_rcv_bufs_force process_monitor_rcv_bufs \
         process_monitor_rcv_bufs_force vrrp_rx_bufs_policy vrrp_rx_bufs_multiplier",
        "lvsd sizes its own sockets",
    ),
    ignored(&[GlobalDefs], "tmp_config_directory", "no copy of the configuration is written"),
    ignored(&[GlobalDefs], "iproute_usr_dir iproute_etc_dir", "routes are set with the system's own tools"),
    //
    read(&[VrrpInstance], "state interface virtual_router_id priority advert_int version"),
    read(&[VrrpInstance], "authentication").opens(Authentication),
    read(&[VrrpInstance], "virtual_ipaddress").opens(Entries).repeats(),
    read(&[VrrpInstance], "nopreempt preempt preempt_delay"),
    read(&[VrrpInstance], "unicast_src_ip mcast_src_ip"),
    read(&[VrrpInstance], "unicast_peer").opens(Entries).repeats(),
    read(
        &[VrrpInstance],
        "garp_master_delay garp_master_repeat garp_master_refresh garp_master_refresh_repeat",
    ),
    not_yet(&[VrrpInstance], "virtual_ipaddress_excluded", "these addresses are not moved")
        .opens(Entries)
        .repeats(),
    not_yet(&[VrrpInstance], "no_virtual_ipaddress", ""),
    read(&[VrrpInstance], "auth_hmac").opens(AuthHmac),
    not_yet(
        &[VrrpInstance],
        "unicast_ttl unicast_fault_no_peer check_unicast_src old_unicast_checksum mcast_dst_ip track_src_ip \
         lower_prio_no_advert higher_prio_send_advert owner_ignore_adverts skip_check_adv_addr \
         strict_mode timer_expired_backup|thread_timer_expired",
        "the default applies",
    ),
    read(&[VrrpInstance], "down_timer_adverts v3_checksum_as_v2"),
    read(&[VrrpInstance, SyncGroup], "track_interface track_script track_file track_process")
        .opens(Entries)
        .repeats(),
    not_yet(&[VrrpInstance, SyncGroup], "track_bfd", "its failure changes neither state nor priority")
        .opens(Entries)
        .repeats(),
    not_yet(&[VrrpInstance], "dont_track_primary", "a failed interface puts the instance into FAULT"),
    read(&[VrrpInstance, SyncGroup], "notify_master notify_backup notify_fault notify_stop notify"),
    not_yet(&[VrrpInstance], "notify_deleted notify_master_rx_lower_pri", NO_SCRIPTS),
    not_yet(&[VrrpInstance, SyncGroup], "notify_priority_changes", "a FIFO is told of states only"),
    not_yet(&[VrrpInstance, SyncGroup, VirtualServer, RealServer], "smtp_alert", NO_MAIL),
    not_yet(
        &[VrrpInstance],
        "garp_lower_prio_delay garp_lower_prio_repeat garp_extra_if|vmac_garp_intvl",
        "announcements keep their usual number and pace",
    ),
    not_yet(&[VrrpInstance], "accept no_accept", "packets to the addresses are accepted"),
    not_yet(
        &[VrrpInstance],
        "use_vmac use_vmac_addr vmac_xmit_base use_ipvlan",
        "the addresses have the MAC of the interface",
    ),
    not_yet(&[VrrpInstance], "vrf", ""),
    not_yet(&[VrrpInstance], "virtual_routes virtual_rules", "they are not moved with the addresses")
        .opens(Entries)
        .repeats(),
    not_yet(&[VrrpInstance], "native_ipv6", "there is no IPv6 yet"),
    not_yet(&[VrrpInstance], "promote_secondaries", ""),
    ignored(&[VrrpInstance], "lvs_sync_daemon_interface", NO_IPVS),
    ignored(&[VrrpInstance], "kernel_rx_buf_size", "lvsd sizes its own sockets"),
    ignored(&[VrrpInstance], "debug", "set the log level instead"),
    read(&[Authentication], "auth_type auth_pass"),
    read(&[AuthHmac], "key").repeats(),
    read(&[AuthHmac], "active_key time_window anti_replay mode"),
    //
    read(&[SyncGroup], "group").opens(Entries),
    read(&[SyncGroup], "sync_group_tracking_weight"),
    not_yet(&[TrackGroup], "group", "").opens(Entries),
    not_yet(&[SyncGroup], "global_tracking", "write `sync_group_tracking_weight`"),
    read(&[VrrpScript], "script interval timeout weight rise fall user init_fail"),
    read(
        &[TrackProcess],
        "process param_match weight quorum quorum_max delay terminate_delay fork_delay full_command",
    ),
    read(&[TrackFile], "file weight init_file"),
    not_yet(&[GarpGroup], "garp_interval gna_interval interface", ""),
    not_yet(&[GarpGroup], "interfaces", "").opens(Entries),
    //
    read(&[VirtualServer], "lvs_sched|lb_algo protocol mh-port sh-port weight quorum hysteresis"),
    read(&[VirtualServer], "sorry_server sorry_server_inhibit sorry_server_lvs_method"),
    // lvsd's own.
    read(&[VirtualServer, RealServer], "slow_start drain_timeout"),
    read(&[VirtualServer, RealServer], "lvs_method|lb_kind inhibit_on_failure virtualhost"),
    read(&[VirtualServer, RealServer], "delay_loop connect_timeout retry delay_before_retry warmup alpha"),
    read(&[VirtualServer], "real_server").opens(RealServer).repeats(),
    not_yet(
        &[VirtualServer],
        "persistence_timeout persistence_granularity persistence_engine",
        "a client may reach several real servers (with `lvs_sched mh` it keeps one)",
    ),
    not_yet(&[VirtualServer], "ops flag-1 flag-2 flag-3", ""),
    not_yet(&[VirtualServer], "ip_family", "there is no IPv6 yet"),
    not_yet(&[VirtualServer], "ha_suspend", "checks run on the backup too"),
    read(&[VirtualServer], "omega quorum_up quorum_down"),
    ignored(
        &[VirtualServer],
        "mh-fallback sh-fallback",
        "flows of a failed real server always move to the others",
    ),
    ignored(&[VirtualServer], "hashed nat_mask net_mask lvs_id", "keepalived ignores it as well"),
    ignored(&[VirtualServer, RealServer], "snmp_name", OWN_SNMP),
    //
    read(&[RealServer], "weight"),
    read(&[RealServer], "TCP_CHECK").opens(TcpCheck).repeats(),
    read(&[RealServer], "HTTP_GET").opens(HttpGet).repeats(),
    read(&[RealServer], "SSL_GET").opens(SslGet).repeats(),
    read(&[RealServer], "MISC_CHECK").opens(MiscCheck).repeats(),
    read(&[RealServer], "UDP_CHECK").opens(UdpCheck).repeats(),
    read(&[RealServer], "DNS_CHECK").opens(DnsCheck).repeats(),
    read(&[RealServer], "SMTP_CHECK").opens(SmtpCheck).repeats(),
    read(&[RealServer], "PING_CHECK").opens(PingCheck).repeats(),
    read(&[RealServer], "FILE_CHECK").opens(FileCheck).repeats(),
    not_yet(&[RealServer], "BFD_CHECK", UNCHECKED).opens(BfdCheck).repeats(),
    not_yet(&[RealServer], "uthreshold lthreshold", "the number of connections is not limited"),
    read(&[RealServer], "notify_up notify_down"),
    //
    read(CONNECTING, "connect_ip connect_port connect_timeout bindto bind_port bind_if fwmark"),
    read(CHECKS, "retry delay_before_retry delay_loop warmup alpha log_all_failures"),
    // These two are lvsd's own.
    read(CHECKS, "rise fall"),
    // keepalived knows it in HTTP_GET only, but files carry it in both.
    Row::new(&[TcpCheck, HttpGet, SslGet], "nb_get_retry", Status::Deprecated("retry")),
    read(&[HttpGet, SslGet], "virtualhost http_protocol fast_recovery"),
    read(&[SslGet], "enable_sni sni_name"),
    read(&[HttpGet, SslGet], "url").opens(Url).repeats(),
    ignored(&[HttpGet], "enable_sni sni_name tls_compliant", "SSL_GET has TLS, HTTP_GET has none"),
    ignored(&[SslGet, Url], "tls_compliant", "every check says goodbye to TLS"),
    read(&[Url], "path status_code digest virtualhost"),
    read(&[Url], "regex regex_no_match regex_options regex_min_offset regex_max_offset"),
    ignored(&[Url], "regex_stack", "a search needs no stack"),
    //
    not_yet(&[SmtpHost], "connect_ip connect_port bindto bind_port bind_if connect_timeout fwmark", ""),
    read(&[SmtpCheck], "helo_name"),
    not_yet(&[SmtpCheck], "host", "the checker's own address is asked").opens(SmtpHost).repeats(),
    read(&[DnsCheck], "type name"),
    read(&[MiscCheck], "misc_path misc_timeout misc_dynamic user"),
    read(&[UdpCheck], "payload require_reply min_reply_length max_reply_length"),
    read(&[FileCheck], "track_file weight"),
    ignored(&[FileCheck], "dynamic", "with a weight other than 0 it is so"),
    not_yet(&[BfdCheck], "name alpha", ""),
    read(&[Ssl], "ca"),
    not_yet(&[Ssl], "password certificate key", "checks show no certificate of their own"),
    not_yet(
        &[BfdInstance],
        "neighbor_ip|neighbour_ip source_ip min_rx min_tx idle_tx multiplier passive ttl hoplimit max_hops multihop \
         weight vrrp checker",
        "",
    ),
    not_yet(&[Top], "includer includem includew includeb includea", "write `include`").repeats(),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_stands_twice_in_one_block() {
        let mut seen = std::collections::HashSet::new();
        for keyword in keywords() {
            assert!(seen.insert((keyword.block, keyword.word)), "{keyword:?}");
        }
    }

    #[test]
    fn a_word_is_found_by_its_likeness_but_not_by_any() {
        let guess = |block, word| nearest(block, word).map(|keyword| keyword.word);
        assert_eq!(guess(VirtualServer, "delay_lop"), Some("delay_loop"));
        assert_eq!(guess(RealServer, "tcp_check"), Some("TCP_CHECK"));
        assert_eq!(guess(VirtualServer, "haproxy"), None);
        assert_eq!(guess(VirtualServer, &"x".repeat(1 << 20)), None);
        assert_eq!(nearest_of(["2", "3"].into_iter(), "4"), None);
    }

    #[test]
    fn only_blocks_of_the_top_level_end_the_blocks_around_them() {
        assert!(only_at_top("vrrp_instance") && only_at_top("virtual_server"));
        assert!(!only_at_top("track_file") && !only_at_top("real_server") && !only_at_top("include"));
    }
}
