//! What an operator ordered at run time, over what the configuration says.
//!
//! An order outlives a reload as long as its real server is in the file, and a restart of the daemon.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Weights by service and real server, each as `lvsd status` names it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Orders(BTreeMap<String, BTreeMap<String, u16>>);

/// One order. `service` is `tcp:ADDRESS:PORT`, or without the protocol where that is clear.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "snake_case")]
pub enum Order {
    /// 0 drains.
    Weight { service: String, real: String, weight: u16 },
    /// The real server has its own weight again.
    Enable { service: String, real: String },
    /// All have.
    Reset,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    #[error("no virtual server is called {got:?}; there {}", listed(known))]
    NoService { got: String, known: Vec<String> },
    #[error("{got:?} is several virtual servers: {}", known.join(", "))]
    Ambiguous { got: String, known: Vec<String> },
    #[error("{service} has no real server {got:?}; there {}", listed(known))]
    NoReal { service: String, got: String, known: Vec<String> },
    #[error("{real} has weight 0 in the configuration: give it another with `lvsd weight`")]
    ConfiguredZero { real: String },
}

fn listed(known: &[String]) -> String {
    const MOST: usize = 8;
    match known {
        [] => "is none".to_owned(),
        [one] => format!("is {one}"),
        _ if known.len() <= MOST => format!("are {}", known.join(", ")),
        _ => format!("are {} and {} more", known[..MOST].join(", "), known.len() - MOST),
    }
}

impl Orders {
    pub fn weight(&self, service: &str, real: &str) -> Option<u16> {
        self.0.get(service)?.get(real).copied()
    }

    /// `None` takes the order back.
    pub fn set(&mut self, service: &str, real: &str, weight: Option<u16>) {
        let reals = self.0.entry(service.to_owned()).or_default();
        match weight {
            Some(weight) => reals.insert(real.to_owned(), weight),
            None => reals.remove(real),
        };
        if reals.is_empty() {
            self.0.remove(service);
        }
    }

    /// Forgets the orders for which `is_known` does not hold.
    pub fn retain(&mut self, is_known: impl Fn(&str, &str) -> bool) {
        for (service, reals) in &mut self.0 {
            reals.retain(|real, _| is_known(service, real));
        }
        self.0.retain(|_, reals| !reals.is_empty());
    }

    /// Where they lie between two lives of the daemon.
    pub fn path(run_dir: &Path) -> PathBuf {
        run_dir.join("orders.json")
    }

    /// None where there is no file. What cannot be read is put aside and told: an operator's drain does not vanish
    /// unsaid, but a director that does not start is worse.
    pub fn load(path: &Path) -> Self {
        let read = || match fs::read(path) {
            Ok(text) => Ok(serde_json::from_slice(&text)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        };
        read().unwrap_or_else(|error: io::Error| {
            let aside = path.with_extension("unreadable");
            let moved = fs::rename(path, &aside).is_ok();
            tracing::error!(%error, file = %path.display(), moved, "orders cannot be read: nothing is overridden");
            Self::default()
        })
    }

    /// At no time is half of them in the file.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        if self.0.is_empty() {
            return match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let draft = path.with_extension("new");
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::rename(draft, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_a_restart_and_an_unreadable_file_is_put_aside() {
        let dir = std::env::temp_dir().join(format!("lvsd-orders-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = Orders::path(&dir);
        let mut orders = Orders::load(&path);
        assert_eq!(orders, Orders::default());
        orders.set("tcp:10.0.0.1:80", "10.0.0.2:80", Some(7));
        orders.save(&path).unwrap();
        assert_eq!(Orders::load(&path).weight("tcp:10.0.0.1:80", "10.0.0.2:80"), Some(7));

        fs::write(&path, "{").unwrap();
        assert_eq!(Orders::load(&path), Orders::default());
        assert!(dir.join("orders.unreadable").exists());
        orders.set("tcp:10.0.0.1:80", "10.0.0.2:80", None);
        orders.save(&path).unwrap();
        assert!(!path.exists(), "no orders, no file");
        fs::remove_dir_all(dir).unwrap();
    }
}
