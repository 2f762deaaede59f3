//! The command line.

use std::{net::IpAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{config, dataplane::Mode};

/// Load balancer daemon: VRRP, health checks and XDP forwarding, configured by keepalived.conf.
#[derive(Parser)]
#[command(name = "lvsd", version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a director on this host.
    ///
    /// SIGTERM stops it: it resigns as master, forwards on until another took over, then removes everything.
    /// SIGHUP reads the configuration again. SIGUSR2 ends it at once but leaves forwarding and leases as they are, for a restart that nobody notices.
    /// The log is filtered by the environment variable LVSD_LOG (for instance `debug` or `control::vrrp=debug`).
    Run {
        /// Configuration in keepalived.conf's language.
        #[arg(long, value_name = "FILE", default_value = "/etc/lvsd/lvsd.conf")]
        config: PathBuf,
        #[command(flatten)]
        config_id: ConfigId,
        /// Holds the control socket and the pinned BPF objects.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
        run_dir: PathBuf,
        /// Where in the receive path the program is attached.
        #[arg(long, value_name = "MODE", default_value = "auto")]
        xdp_mode: Mode,
    },
    /// Read a configuration and report everything that is wrong with it.
    ///
    /// Exit status: 0 usable (perhaps with warnings), 1 errors, 2 the file cannot be read.
    Check {
        #[arg(value_name = "FILE", required_unless_present = "explain")]
        file: Option<PathBuf>,
        #[arg(long, default_value = "text")]
        format: Format,
        /// Say what a word of the language or a code such as E0012 means.
        #[arg(long, value_name = "WORD|CODE", conflicts_with = "file")]
        explain: Option<String>,
        #[command(flatten)]
        config_id: ConfigId,
    },
    /// Have a running director read its configuration again, as SIGHUP does, and say how that went.
    ///
    /// With errors in the file nothing changes. Instances, real servers and flows that are in the old and the new
    /// configuration go on undisturbed.
    Reload {
        /// Run directory of the daemon to ask.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
        run_dir: PathBuf,
    },
    /// Have a real server of a running director take no new flows; those it has continue.
    ///
    /// SERVICE and REAL are as `lvsd status` shows them, for instance `tcp:192.0.2.100:80` and `192.0.2.11:80`. An
    /// order holds over weights of the configuration and of checks, through reloads and restarts, until `enable` or `reset`. It is this
    /// director's alone: give it on every director.
    Drain {
        service: String,
        real: String,
        /// Run directory of the daemon to tell.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
        run_dir: PathBuf,
    },
    /// Take an order for a real server back: it has its configured weight again.
    Enable {
        service: String,
        real: String,
        /// Run directory of the daemon to tell.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
        run_dir: PathBuf,
    },
    /// Give a real server of a running director another weight, as `drain` gives it 0.
    Weight {
        service: String,
        real: String,
        /// 0 to 65535.
        weight: u16,
        /// Run directory of the daemon to tell.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
        run_dir: PathBuf,
    },
    /// Take all orders for real servers back.
    Reset {
        /// Run directory of the daemon to tell.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
        run_dir: PathBuf,
    },
    /// Have other directors be master, for maintenance of this one. Nothing is lost: this one forwards on what still
    /// reaches it.
    ///
    /// It stays backup while there is another master, until `lvsd failback` or a restart. Waits until others have taken
    /// over; exit status 1 if nobody does.
    Failover {
        /// A vrrp_instance, or a vrrp_sync_group; its members move together. All where absent.
        instance: Option<String>,
        /// The address that this director's adverts come from; of several backups it is the one to take over.
        #[arg(long, value_name = "PEER")]
        to: Option<IpAddr>,
        /// Run directory of the daemon to ask.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
        run_dir: PathBuf,
    },
    /// End what `lvsd failover` began: the director is master again where its priority and preemption have it so.
    Failback {
        /// A vrrp_instance, or a vrrp_sync_group. All where absent.
        instance: Option<String>,
        /// Run directory of the daemon to ask.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
        run_dir: PathBuf,
    },
    /// Show what a reload with FILE would change in a running director, and change nothing.
    ///
    /// `+` comes, `-` goes, `~` changes; what is not named goes on undisturbed. Exit status 1 with errors in the file.
    Plan {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[arg(long, default_value = "text")]
        format: Format,
        #[command(flatten)]
        config_id: ConfigId,
        /// Run directory of the daemon to ask.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
        run_dir: PathBuf,
    },
    /// Print a configuration with its blocks indented, one statement a line, comments kept.
    Fmt {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Print nothing; exit status 1 if the file is written otherwise.
        #[arg(long)]
        check: bool,
    },
    /// Show VRRP instances, real servers and packet counters of a running director.
    Status {
        #[arg(long)]
        json: bool,
        /// Run directory of the daemon to ask.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
        run_dir: PathBuf,
    },
    /// Detach the XDP program that a killed director left forwarding, and remove its tables.
    Unload {
        /// Run directory of the daemon that is gone.
        #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR)]
        run_dir: PathBuf,
    },
}

/// One file for several nodes: which lines of it are meant for this one.
#[derive(Args)]
pub struct ConfigId {
    /// Lines that begin with `@ID` are for this ID; the host's name up to the first dot if it is not given.
    #[arg(short = 'i', long, value_name = "ID", default_value_t = config::default_config_id())]
    pub config_id: String,
}

const DEFAULT_RUN_DIR: &str = "/run/lvsd";

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Text,
    Json,
}
