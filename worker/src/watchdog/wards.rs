//! The processes that a worker started, found by a variable in their environment, and their end.

use std::time::Duration;

/// Kills every process with `mark` in its environment, but none with `spare`, until two looks in a row find none: a
/// process may fork while we look. Returns how many were killed.
pub(crate) fn kill_all(mark: &str, spare: Option<&str>) -> usize {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    let own = Pid::this().as_raw();
    let (mut killed, mut clean) = (0, 0);
    for _ in 0..200 {
        let wards: Vec<i32> = marked(mark, spare)
            .into_iter()
            .filter(|pid| *pid != own)
            .collect();
        if wards.is_empty() {
            clean += 1;
            if clean == 2 {
                break;
            }
        } else {
            clean = 0;
        }
        for pid in wards {
            // One that is gone already is what we want.
            killed += usize::from(kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    killed
}

/// Live processes with `mark` in their environment as it was when they were started.
fn marked(mark: &str, spare: Option<&str>) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    let has = |environment: &[u8], text: &str| {
        environment
            .split(|byte| *byte == 0)
            .any(|entry| entry == text.as_bytes())
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            // A zombie has no environment, so it is not found.
            std::fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
                has(&environment, mark) && !spare.is_some_and(|spare| has(&environment, spare))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watchdog::LIFE;
    use std::process::Command;

    #[test]
    fn finds_and_kills_marked_processes_whatever_their_session() {
        let mark = format!("{LIFE}=test-{}", std::process::id());
        let (key, value) = mark.split_once('=').unwrap();
        let mut child = Command::new("setsid")
            .args(["sh", "-c", "sleep 100 & sleep 100"])
            .env(key, value)
            .spawn()
            .unwrap();
        for _ in 0..500 {
            if marked(&mark, None).len() >= 2 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(kill_all(&mark, None) >= 2);
        assert!(marked(&mark, None).is_empty());
        child.wait().unwrap();
    }
}
