//! What a large site's file costs.

use std::{env, fmt::Write as _, fs, net::Ipv4Addr, process, time::Instant};

use control::config::{self, outline::Outline};

use crate::peak::{TURN, peak};

/// `services` virtual servers of `reals` real servers each, as a generator would write them.
fn site(services: u32, reals: u32) -> String {
    let mut text = String::from("global_defs {\n    router_id lb1\n}\n\n");
    for service in 0..services {
        let address = Ipv4Addr::from_bits(0x0a00_0001 + service);
        let _ = write!(
            text,
            "virtual_server {address} 80 {{\n    delay_loop 6\n    lb_algo wlc\n    lb_kind DR\n    protocol TCP\n\n"
        );
        for real in 0..reals {
            let address = Ipv4Addr::from_bits(0x0b00_0001 + service * reals + real);
            let _ = write!(
                text,
                "    real_server {address} 80 {{\n        weight 1\n        TCP_CHECK {{\n            \
                 connect_timeout 3\n            retry 2\n            delay_before_retry 1\n        }}\n    }}\n"
            );
        }
        text.push_str("}\n\n");
    }
    text
}

/// `cargo xtask bench config` prints it. No assertion on time: it is the machine's.
#[test]
#[ignore = "a measurement"]
fn what_a_large_site_costs() {
    let _turn = TURN.lock();
    let folder = env::temp_dir().join(format!("lvsd-speed-{}", process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("site.conf");
    let text = site(1000, 100);
    fs::write(&path, &text).unwrap();
    println!("1000 virtual servers x 100 real servers, {} bytes", text.len());
    let mut loaded = None;
    for _ in 0..3 {
        drop(loaded.take());
        #[expect(clippy::disallowed_methods, reason = "a measurement")]
        let start = Instant::now();
        let (read, most) = peak(|| config::load(&path, "").unwrap());
        let times = most as f64 / text.len() as f64;
        println!("parsed in {:?}, {most} bytes at most ({times:.1} times the file)", start.elapsed());
        assert!(!read.has_errors(), "{}", read.render_text());
        loaded = Some(read);
    }
    let config = loaded.unwrap().config;
    assert_eq!(config.services.iter().map(|service| service.reals.len()).sum::<usize>(), 100_000);
    #[expect(clippy::disallowed_methods, reason = "a measurement")]
    let start = Instant::now();
    let outline = Outline::of(&config);
    println!("described for a plan in {:?}", start.elapsed());
    let mut next = config;
    next.services[500].reals[50].weight = 7;
    #[expect(clippy::disallowed_methods, reason = "a measurement")]
    let start = Instant::now();
    let changes = outline.changes(&Outline::of(&next));
    println!("compared in {:?}: {} change", start.elapsed(), changes.len());
    fs::remove_dir_all(folder).unwrap();
}

/// Generators seldom indent, and some say nothing that is the default.
#[test]
fn a_site_is_read_however_it_is_written_and_takes_no_more_than_ten_times_its_file() {
    let _turn = TURN.lock();
    let folder = env::temp_dir().join(format!("lvsd-site-{}", process::id()));
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join("site.conf");
    let indented = site(1000, 100);
    let flush: String = indented.lines().map(|line| format!("{}\n", line.trim_start())).collect();
    let is_default = |line: &&str| {
        ["weight", "connect_timeout", "retry", "delay_before"].iter().any(|it| line.starts_with(it))
    };
    let terse: String =
        flush.lines().filter(|line| !is_default(line)).map(|line| format!("{line}\n")).collect();
    for text in [indented, flush, terse] {
        fs::write(&path, &text).unwrap();
        let (loaded, most) = peak(|| config::load(&path, "").unwrap());
        assert!(!loaded.has_errors(), "{}", loaded.render_text());
        let reals = loaded.config.services.iter().map(|service| service.reals.len());
        assert_eq!(reals.sum::<usize>(), 100_000);
        println!("{} bytes of text, {:.1} times that of memory", text.len(), most as f64 / text.len() as f64);
        assert!(most <= 10 * text.len(), "{most} bytes for {}", text.len());
    }
    fs::remove_dir_all(folder).unwrap();
}
