//! Tells when files hold something else than before.
//!
//! The folders are watched and the contents compared: editors put another file in a file's place, and
//! Kubernetes swaps a link (`..data`) several links away. Who writes into a file is waited for: half
//! of a configuration may be one, too.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _,
    event::{AccessKind, AccessMode, ModifyKind},
};
use ring::digest::{SHA256, digest};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

/// Nothing must have happened for so long...
const QUIET: Duration = Duration::from_millis(200);

/// ... unless it goes on for longer than this.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long a file may stay open for writing before it is read all the same.
const WRITER_PATIENCE: Duration = Duration::from_secs(10);

/// How often the files are looked at without any event: a folder further up may have been replaced,
/// and some file systems tell nothing.
const LOOK_ANYWAY: Duration = Duration::from_secs(10);

/// Why files should be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileChange {
    /// The watch of these files has begun; nobody saw what happened before.
    Begun,
    /// They hold something else.
    Contents,
    /// None of their doing: it is time to try again.
    Nothing,
}

/// Watches some files.
pub struct FileWatch {
    files: Vec<PathBuf>,
    /// What they held when they were looked at last, as far as they could be read.
    seen: Vec<Option<Vec<u8>>>,
    watcher: RecommendedWatcher,
    folders: BTreeSet<PathBuf>,
    /// Those among them that cannot be watched, which has been said.
    unwatched: BTreeSet<PathBuf>,
    events: mpsc::Receiver<()>,
    written: Written,
    /// Nobody has read them since the watch began.
    is_unread: bool,
    /// [`LOOK_ANYWAY`]
    look_anyway: Duration,
}

/// Files in the folders that somebody has written into and not closed yet.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<HashSet<PathBuf>>>);

impl Written {
    fn files(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an event in; whether it can be about other contents.
    fn note(&self, Event { kind, paths, .. }: Event) -> bool {
        let paths = paths.into_iter().filter_map(|path| fs::canonicalize(path).ok());
        match kind {
            EventKind::Modify(ModifyKind::Data(_)) => self.files().extend(paths),
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => {
                let mut files = self.files();
                paths.for_each(|path| {
                    files.remove(&path);
                });
            }
            // That somebody reads is no change.
            kind if kind.is_access() => return false,
            // Who is deleted is not closed.
            _ => self.files().retain(|path| path.exists()),
        }
        true
    }

    fn has_any(&self, files: &[PathBuf]) -> bool {
        let written = self.files();
        !written.is_empty()
            && files
                .iter()
                .filter_map(|file| fs::canonicalize(file).ok())
                .any(|file| written.contains(&file))
    }
}

impl FileWatch {
    /// Watches `files` from what they hold now.
    ///
    /// # Errors
    /// The system has no watch to give.
    pub fn new(files: Vec<PathBuf>) -> notify::Result<Self> {
        let (sender, events) = mpsc::channel(1);
        let written = Written::default();
        let noted = written.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // A full channel says already that something is up.
            if event.is_ok_and(|event| noted.note(event)) {
                let _ = sender.try_send(());
            }
        })?;
        let mut watch = Self {
            files: Vec::new(),
            seen: Vec::new(),
            watcher,
            folders: BTreeSet::new(),
            unwatched: BTreeSet::new(),
            events,
            written,
            is_unread: false,
            look_anyway: LOOK_ANYWAY,
        };
        watch.follow(files);
        Ok(watch)
    }

    /// Watches `files` instead of those before; if they are others, that is a beginning.
    pub fn follow(&mut self, files: Vec<PathBuf>) {
        if files != self.files {
            self.files = files;
            self.look();
            self.is_unread = true;
        }
        self.watch_folders();
    }

    /// Looks at the files, to be called before somebody reads them unasked: what they hold now is no
    /// change any more.
    pub fn look(&mut self) {
        self.seen = contents(&self.files);
        self.is_unread = false;
    }

    /// Resolves when one of the files holds something else, or when that is not so and nobody has
    /// written for `at_most`; and at the beginning, as soon as nobody writes.
    pub async fn changed(&mut self, at_most: Option<Duration>) -> FileChange {
        if self.is_unread {
            self.settled().await;
            self.look();
            return FileChange::Begun;
        }
        loop {
            let wait = at_most.map_or(self.look_anyway, |at_most| at_most.min(self.look_anyway));
            let event = timeout(wait, self.events.recv()).await;
            if event == Ok(None) {
                return std::future::pending().await;
            }
            if event.is_ok() || self.written.has_any(&self.files) {
                self.settled().await;
            }
            self.watch_folders();
            let now = contents(&self.files);
            if now != self.seen {
                self.seen = now;
                return FileChange::Contents;
            }
            if event.is_err() && at_most.is_some() {
                return FileChange::Nothing;
            }
        }
    }

    /// Resolves when nothing happens any more, or when that takes too long.
    async fn settled(&mut self) {
        let since = Instant::now();
        loop {
            let patience = match self.written.has_any(&self.files) {
                true => WRITER_PATIENCE,
                false => PATIENCE,
            };
            let now = Instant::now();
            let until = since + patience;
            if now >= until {
                return;
            }
            let more = timeout_at(until.min(now + QUIET), self.events.recv()).await;
            if more.is_err() && !self.written.has_any(&self.files) {
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
            match self.watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.unwatched.remove(folder);
                }
                Err(error) if self.unwatched.insert(folder.clone()) => {
                    log::warn!("{} is not watched: {error}", folder.display());
                }
                Err(_) => {}
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
    let digest = |file: &PathBuf| {
        // Nothing else: it might block, or have no end.
        let is_file = fs::metadata(file).is_ok_and(|found| found.is_file());
        let text = is_file.then(|| fs::read(file).ok())??;
        Some(digest(&SHA256, &text).as_ref().to_vec())
    };
    files.iter().map(digest).collect()
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, os::unix::fs::symlink};

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

    const AT_MOST: Duration = Duration::from_secs(30);

    async fn change(watch: &mut FileWatch) -> FileChange {
        tokio::time::timeout(AT_MOST, watch.changed(None)).await.expect("a change")
    }

    /// A watch that somebody has read the files of.
    async fn watch(file: &Path) -> FileWatch {
        let mut watch = FileWatch::new(vec![file.to_owned()]).unwrap();
        assert_eq!(change(&mut watch).await, FileChange::Begun);
        watch
    }

    async fn sees(watch: &mut FileWatch) {
        assert_eq!(change(watch).await, FileChange::Contents);
    }

    #[actix_rt::test]
    async fn other_contents_are_seen_however_they_get_there() {
        let folder = Folder::new();
        let file = folder.0.join("a.toml");
        fs::write(&file, "one").unwrap();
        let mut watch = watch(&file).await;
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
        let mut watch = watch(&folder.0.join("a.toml")).await;
        for number in 1..4 {
            version(number);
            fs::remove_dir_all(folder.0.join(format!("..{}", number - 1))).unwrap();
            sees(&mut watch).await;
        }
    }

    /// Whoever writes in pieces is not done before the file is closed.
    #[actix_rt::test]
    async fn a_file_is_not_looked_at_while_somebody_writes_it() {
        let folder = Folder::new();
        let file = folder.0.join("a.toml");
        fs::write(&file, "one").unwrap();
        let mut watch = watch(&file).await;
        let mut writer = fs::File::create(&file).unwrap();
        writer.write_all(b"half ").unwrap();
        // Not even if what was there is to be read again.
        for again in [None, Some(QUIET)] {
            let mut changed = Box::pin(watch.changed(again));
            let quiet = tokio::time::timeout(3 * QUIET, &mut changed).await;
            assert!(quiet.is_err(), "half of it is no change yet");
        }
        writer.write_all(b"and half").unwrap();
        drop(writer);
        sees(&mut watch).await;
        assert_eq!(watch.seen, contents(&[file]));
        assert_eq!(watch.changed(Some(QUIET)).await, FileChange::Nothing);
        assert!(watch.written.files().is_empty());
    }

    #[actix_rt::test]
    async fn what_is_written_when_the_watch_begins_is_waited_for() {
        let folder = Folder::new();
        let file = folder.0.join("a.toml");
        let mut writer = fs::File::create(&file).unwrap();
        let mut watch = FileWatch::new(vec![file.clone()]).unwrap();
        writer.write_all(b"half ").unwrap();
        let mut changed = Box::pin(watch.changed(None));
        let quiet = tokio::time::timeout(3 * QUIET, &mut changed).await;
        assert!(quiet.is_err(), "half of it is not to be read");
        writer.write_all(b"and half").unwrap();
        drop(writer);
        assert_eq!(changed.await, FileChange::Begun);
        assert_eq!(watch.seen, contents(&[file]));
    }

    /// Nobody tells of what happens further up than the folder in which the file stands.
    #[actix_rt::test]
    async fn a_folder_that_is_replaced_is_seen_too() {
        let folder = Folder::new();
        for version in ["v1", "v2"] {
            fs::create_dir(folder.0.join(version)).unwrap();
            fs::write(folder.0.join(version).join("a.toml"), version).unwrap();
        }
        let current = folder.0.join("current");
        symlink("v1", &current).unwrap();
        let mut watch = watch(&current.join("a.toml")).await;
        watch.look_anyway = QUIET;
        symlink("v2", folder.0.join("next")).unwrap();
        fs::rename(folder.0.join("next"), &current).unwrap();
        sees(&mut watch).await;
    }

    /// Reading it would wait for a writer, with all else that the thread has to do.
    #[test]
    fn what_is_no_file_is_not_read() {
        let folder = Folder::new();
        let pipe = folder.0.join("a.toml");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let (sender, read) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(contents(&[pipe, "/dev/zero".into()])));
        assert_eq!(read.recv_timeout(AT_MOST), Ok(vec![None, None]));
    }

    /// Who names them has read them before, and they may have changed since.
    #[actix_rt::test]
    async fn files_that_are_added_are_a_beginning() {
        let folder = Folder::new();
        let [a, b] = ["a.toml", "b.pem"].map(|name| folder.0.join(name));
        fs::write(&a, "one").unwrap();
        let mut watch = watch(&a).await;
        watch.follow(vec![a.clone(), b]);
        assert_eq!(change(&mut watch).await, FileChange::Begun);
        fs::write(&a, "two").unwrap();
        sees(&mut watch).await;
    }

    /// The target of a link elsewhere.
    #[actix_rt::test]
    async fn what_a_link_leads_to_is_watched_too_and_neighbours_are_not() {
        let (folder, other) = (Folder::new(), Folder::new());
        fs::write(other.0.join("b.toml"), "one").unwrap();
        symlink(other.0.join("b.toml"), folder.0.join("a.toml")).unwrap();
        let mut watch = watch(&folder.0.join("a.toml")).await;
        fs::write(folder.0.join("neighbour"), "x").unwrap();
        let mut changed = Box::pin(watch.changed(None));
        let quiet = tokio::time::timeout(3 * QUIET, &mut changed).await;
        assert!(quiet.is_err(), "a neighbour is no change");
        assert!((&mut changed).now_or_never().is_none());
        drop(changed);
        fs::write(other.0.join("b.toml"), "two").unwrap();
        sees(&mut watch).await;
    }
}
