//! Tells when files hold something else than before.
//!
//! The folders are watched and the contents compared: editors put another file in a file's place, and
//! Kubernetes swaps a link (`..data`) several links away.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use ring::digest::{SHA256, digest};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

/// Nothing must have happened for so long...
const QUIET: Duration = Duration::from_millis(200);

/// ... unless it goes on for longer than this.
const PATIENCE: Duration = Duration::from_secs(2);

/// Watches some files.
pub struct FileWatch {
    files: Vec<PathBuf>,
    /// What they held when they were looked at last, as far as they could be read.
    seen: Vec<Option<Vec<u8>>>,
    watcher: RecommendedWatcher,
    folders: BTreeSet<PathBuf>,
    events: mpsc::Receiver<()>,
}

impl FileWatch {
    /// Watches `files` from what they hold now.
    ///
    /// # Errors
    /// The system has no watch to give.
    pub fn new(files: Vec<PathBuf>) -> notify::Result<Self> {
        let (sender, events) = mpsc::channel(1);
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // That somebody reads is no change; a full channel says already that something is up.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                let _ = sender.try_send(());
            }
        })?;
        let folders = BTreeSet::new();
        let mut watch = Self { seen: Vec::new(), files: Vec::new(), watcher, folders, events };
        watch.follow(files);
        Ok(watch)
    }

    /// Watches `files` instead of those before.
    pub fn follow(&mut self, files: Vec<PathBuf>) {
        if files != self.files {
            self.files = files;
            self.look();
        }
        self.watch_folders();
    }

    /// Looks at the files, to be called before somebody reads them unasked: what they hold now is no
    /// change any more.
    pub fn look(&mut self) {
        self.seen = contents(&self.files);
    }

    /// Resolves when one of the files holds something else.
    pub async fn changed(&mut self) {
        loop {
            if self.events.recv().await.is_none() {
                return std::future::pending().await;
            }
            let until = Instant::now() + PATIENCE;
            while let Ok(Some(())) =
                timeout_at(until.min(Instant::now() + QUIET), self.events.recv()).await
            {
            }
            self.watch_folders();
            let now = contents(&self.files);
            if now != self.seen {
                self.seen = now;
                return;
            }
        }
    }

    /// Watches the folders in which the files and what they are links to stand now.
    fn watch_folders(&mut self) {
        let folders: BTreeSet<PathBuf> = self.files.iter().flat_map(|file| folders(file)).collect();
        for gone in self.folders.difference(&folders) {
            let _ = self.watcher.unwatch(gone);
        }
        // Folders that were watched are watched again: another may stand in one's place.
        for folder in &folders {
            if let Err(error) = self.watcher.watch(folder, RecursiveMode::NonRecursive) {
                log::warn!("{} is not watched: {error}", folder.display());
            }
        }
        self.folders = folders;
    }
}

/// Where `file` stands, and where the file stands that it is a link to.
fn folders(file: &Path) -> impl Iterator<Item = PathBuf> {
    let folder = |file: &Path| match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let target = fs::canonicalize(file).ok().map(|target| folder(&target));
    [folder(file)].into_iter().chain(target)
}

fn contents(files: &[PathBuf]) -> Vec<Option<Vec<u8>>> {
    let digest = |file: &PathBuf| Some(digest(&SHA256, &fs::read(file).ok()?).as_ref().to_vec());
    files.iter().map(digest).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use futures_util::FutureExt as _;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            let name = format!("wsbalancer-watch-{}-{:x}", std::process::id(), fastrand::u64(..));
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    async fn sees(watch: &mut FileWatch) {
        tokio::time::timeout(Duration::from_secs(30), watch.changed()).await.expect("a change");
    }

    #[actix_rt::test]
    async fn other_contents_are_seen_however_they_get_there() {
        let folder = Folder::new();
        let file = folder.0.join("a.toml");
        fs::write(&file, "one").unwrap();
        let mut watch = FileWatch::new(vec![file.clone()]).unwrap();
        fs::write(&file, "two").unwrap();
        sees(&mut watch).await;
        fs::write(folder.0.join("new"), "three").unwrap();
        fs::rename(folder.0.join("new"), &file).unwrap();
        sees(&mut watch).await;
        fs::remove_file(&file).unwrap();
        sees(&mut watch).await;
        fs::write(&file, "four").unwrap();
        sees(&mut watch).await;
    }

    /// As the kubelet does it: file -> ..data/file, ..data -> a folder of its own for each version.
    #[actix_rt::test]
    async fn a_swapped_link_is_seen_again_and_again() {
        let folder = Folder::new();
        let version = |number: u32| {
            let name = format!("..{number}");
            fs::create_dir(folder.0.join(&name)).unwrap();
            fs::write(folder.0.join(&name).join("a.toml"), number.to_string()).unwrap();
            symlink(&name, folder.0.join("..data_tmp")).unwrap();
            fs::rename(folder.0.join("..data_tmp"), folder.0.join("..data")).unwrap();
        };
        version(0);
        symlink("..data/a.toml", folder.0.join("a.toml")).unwrap();
        let mut watch = FileWatch::new(vec![folder.0.join("a.toml")]).unwrap();
        for number in 1..4 {
            version(number);
            fs::remove_dir_all(folder.0.join(format!("..{}", number - 1))).unwrap();
            sees(&mut watch).await;
        }
    }

    /// The target of a link elsewhere.
    #[actix_rt::test]
    async fn what_a_link_leads_to_is_watched_too_and_neighbours_are_not() {
        let (folder, other) = (Folder::new(), Folder::new());
        fs::write(other.0.join("b.toml"), "one").unwrap();
        symlink(other.0.join("b.toml"), folder.0.join("a.toml")).unwrap();
        let mut watch = FileWatch::new(vec![folder.0.join("a.toml")]).unwrap();
        fs::write(folder.0.join("neighbour"), "x").unwrap();
        let mut changed = Box::pin(watch.changed());
        let quiet = tokio::time::timeout(3 * QUIET, &mut changed).await;
        assert!(quiet.is_err(), "a neighbour is no change");
        assert!((&mut changed).now_or_never().is_none());
        drop(changed);
        fs::write(other.0.join("b.toml"), "two").unwrap();
        sees(&mut watch).await;
    }
}
