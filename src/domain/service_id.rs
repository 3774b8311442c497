//! How the process identifies services.

use std::ops::Index;

/// Identifies a service for as long as the process runs.
///
/// Only [`ServiceIds`] issues them. The same name always gets the same id, and an id is never
/// reused for another name, so an id that is kept over a reload still means the same service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(usize);

impl ServiceId {
    /// Position in tables by id: ids are issued without gaps, starting at 0.
    pub fn index(self) -> usize {
        self.0
    }
}

/// Issues the ids of services by name.
#[derive(Clone, Debug, Default)]
pub struct ServiceIds(Vec<String>);

impl ServiceIds {
    /// Returns the id of the service `name`, if it has one.
    pub fn get(&self, name: &str) -> Option<ServiceId> {
        self.0.iter().position(|known| known == name).map(ServiceId)
    }

    /// Returns the id of the service `name`, and issues the next one to a new name.
    pub fn get_or_issue(&mut self, name: &str) -> ServiceId {
        self.get(name).unwrap_or_else(|| {
            self.0.push(name.to_owned());
            ServiceId(self.0.len() - 1)
        })
    }
}

/// One value for each of some services.
#[derive(Clone, Debug)]
pub struct ServiceMap<T>(Vec<Option<T>>);

impl<T> ServiceMap<T> {
    /// Returns the value of the service `id`.
    pub fn get(&self, id: ServiceId) -> Option<&T> {
        self.0.get(id.0)?.as_ref()
    }

    /// Iterates over the values, in the order in which the ids were issued.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flatten()
    }
}

impl<T> FromIterator<(ServiceId, T)> for ServiceMap<T> {
    fn from_iter<I: IntoIterator<Item = (ServiceId, T)>>(values: I) -> Self {
        let mut map = Vec::new();
        for (ServiceId(index), value) in values {
            map.resize_with(map.len().max(index + 1), || None);
            map[index] = Some(value);
        }
        Self(map)
    }
}

impl<T> Index<ServiceId> for ServiceMap<T> {
    type Output = T;

    /// # Panics
    /// If the map has no value for the service.
    fn index(&self, id: ServiceId) -> &T {
        self.get(id).expect("the service is in the map")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_id_and_an_id_keeps_its_name() {
        let mut ids = ServiceIds::default();
        let [chat, video] = ["chat", "video"].map(|name| ids.get_or_issue(name));
        assert_ne!(chat, video);
        assert_eq!(ids.get_or_issue("chat"), chat);
        assert_eq!(ids.get("video"), Some(video));
        assert_eq!(ids.get("web"), None);
        assert_eq!(ids.get_or_issue("web").index(), 2);
    }

    #[test]
    fn a_map_finds_values_by_id_whatever_their_order() {
        let mut ids = ServiceIds::default();
        let [chat, video, web] = ["chat", "video", "web"].map(|name| ids.get_or_issue(name));
        let map: ServiceMap<&str> = [(web, "web"), (chat, "chat")].into_iter().collect();
        assert_eq!((map.get(chat), map.get(video), map[web]), (Some(&"chat"), None, "web"));
        assert_eq!(map.values().collect::<Vec<_>>(), [&"chat", &"web"]);
    }
}
