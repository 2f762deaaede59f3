//! What does `lvsd failover` move, and has another director taken over?

use std::{net::IpAddr, time::Duration};

use futures_util::future::join_all;

use crate::{
    config::{Config, model::Preempt},
    pool::Vrrp,
    vrrp::{
        State,
        board::{Counter, View},
        driver::{self, Word},
    },
};

/// Between two looks at the board.
const LOOK: Duration = Duration::from_millis(10);
/// What may come on top of the timers.
const SLACK: Duration = Duration::from_secs(1);

/// The instances that move with `name`, an instance or a sync group; all where it is absent.
pub fn instances(config: &Config, name: Option<&str>) -> Result<Vec<usize>, String> {
    let Some(name) = name else { return Ok((0..config.instances.len()).collect()) };
    if let Some(group) = config.groups.iter().find(|group| group.name == name) {
        return Ok(group.members.clone());
    }
    let Some(index) = config.instances.iter().position(|instance| instance.name == name) else {
        return Err(format!("there is no vrrp_instance and no vrrp_sync_group {name:?}"));
    };
    let group = config.groups.iter().find(|group| group.members.contains(&index));
    Ok(group.map_or(vec![index], |group| group.members.clone()))
}

/// Hands over and waits until others are masters. Says how it went with each instance.
pub async fn hand_over(vrrp: Vrrp, instances: Vec<usize>, to: Option<IpAddr>) -> Result<String, String> {
    if let Some(peer) = to {
        for instance in instances.iter().filter_map(|index| vrrp.instances.get(*index)) {
            if peer == instance.source {
                return Err(format!("{}: {peer} is this director itself", instance.name));
            }
            if !instance.peers.is_empty() && !instance.peers.contains(&peer) {
                return Err(format!("{}: {peer} is no unicast_peer", instance.name));
            }
        }
    }
    let before = instances.iter().map(|index| heard(&view(&vrrp, *index)));
    let (before, was_master): (Vec<_>, Vec<_>) =
        before.zip(instances.iter().map(|index| view(&vrrp, *index).state == State::Master)).unzip();
    let word = Word::HandOver { instances: instances.clone(), to };
    vrrp.handle.say(word).map_err(|deaf| deaf.to_string())?;

    let outcomes =
        instances.into_iter().zip(before).zip(was_master).map(async |((index, before), was_master)| {
            let instance = vrrp.instances.get(index)?;
            let (has_failed, outcome) = match was_master {
                false => (false, "was not master, stays so"),
                true if is_succeeded(&vrrp, index, instance, before).await => (false, "handed over"),
                true => (true, "nobody took over: it is master again as soon as that is certain"),
            };
            Some((has_failed, format!("{}: {outcome}\n", instance.name)))
        });
    let outcomes: Vec<_> = join_all(outcomes).await.into_iter().flatten().collect();
    let said: String = outcomes.iter().map(|(_, line)| line.as_str()).collect();
    let has_failed = outcomes.iter().any(|(has_failed, _)| *has_failed);
    if has_failed { Err(said.trim_end().to_owned()) } else { Ok(said) }
}

/// Lets them be master again where their priority has it so.
pub fn take_part(vrrp: &Vrrp, instances: Vec<usize>) -> Result<String, String> {
    let said = instances.iter().filter_map(|index| vrrp.instances.get(*index)).map(|instance| {
        let again = if instance.preempt == Preempt::Never {
            ", but nopreempt leaves the role with the master of now"
        } else {
            ""
        };
        format!("{}: takes part again{again}\n", instance.name)
    });
    let said = said.collect();
    vrrp.handle.say(Word::TakePart { instances }).map_err(|deaf| deaf.to_string())?;
    Ok(said)
}

/// Another master was heard. `before`, so many adverts had come from masters.
async fn is_succeeded(vrrp: &Vrrp, index: usize, instance: &driver::Instance, before: u64) -> bool {
    // Peers wait for at most a skew; who was not invited, as long as for a silent master.
    let limit = instance.advert_interval * (instance.down_timer_adverts + 1) + SLACK;
    let looks = limit.as_millis() / LOOK.as_millis();
    for _ in 0..looks {
        let view = view(vrrp, index);
        if view.state != State::Master && heard(&view) > before {
            return true;
        }
        tokio::time::sleep(LOOK).await;
    }
    false
}

fn view(vrrp: &Vrrp, index: usize) -> View {
    vrrp.handle.board().view(index).unwrap_or_default()
}

/// Adverts of masters.
fn heard(view: &View) -> u64 {
    let count = |counter: Counter| view.counters.get(counter as usize).copied().unwrap_or_default();
    count(Counter::AdvertsReceived).saturating_sub(count(Counter::ResignationsReceived))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moved(name: Option<&str>) -> Result<Vec<usize>, String> {
        let loaded =
            crate::config::load(std::path::Path::new("tests/config/sound/sync_group.conf"), "").unwrap();
        let mut moved = instances(&loaded.config, name)?;
        moved.sort_unstable();
        Ok(moved)
    }

    #[test]
    fn a_sync_group_moves_whichever_member_is_named() {
        assert_eq!(moved(None), Ok(vec![0, 1, 2]));
        assert_eq!(moved(Some("C")), Ok(vec![2]));
        for name in ["A", "B", "VG"] {
            assert_eq!(moved(Some(name)), Ok(vec![0, 1]), "{name}");
        }
        assert!(moved(Some("D")).is_err());
    }
}
