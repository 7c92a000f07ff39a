//! What a tenant has registered, in memory: MCP servers, tools, virtual servers and components follow the log; prompts and
//! resources are what the gateway saw last. Views of it are put together once and kept until something changes.

use super::view::{Door, View};
use async_trait::async_trait;
use domain::component::Component;
use domain::mcp_server::McpServer;
use domain::tool::Tool;
use domain::virtual_server::VirtualServer;
use engine::{Engine, Executor, Handled};
use gateway::Gateway;
use kernel::id::{ComponentId, McpServerId, TenantId, ToolId, VirtualServerId};
use kernel::{Decider, Process, Recorded, Timestamp};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use tokio::sync::watch;

/// Everything that is not deleted.
#[derive(Default)]
pub(crate) struct Known {
    pub servers: BTreeMap<McpServerId, Arc<Handled<McpServer>>>,
    pub tools: BTreeMap<ToolId, Arc<Handled<Tool>>>,
    pub virtuals: BTreeMap<VirtualServerId, Arc<Handled<VirtualServer>>>,
    pub components: BTreeMap<ComponentId, Arc<Handled<Component>>>,
}

/// The catalogue of one tenant.
pub(crate) struct Catalogue {
    tenant: TenantId,
    gateway: Gateway,
    known: RwLock<Known>,
    /// Raised whenever something of it changes; see also [`Gateway::generation`].
    generation: watch::Sender<u64>,
    views: Mutex<BTreeMap<Door, (Stamp, Arc<View>)>>,
}

/// What a view was made of.
type Stamp = (u64, u64);

/// One entity that a catalogue holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Server(McpServerId),
    Tool(ToolId),
    Virtual(VirtualServerId),
    Component(ComponentId),
}

impl Catalogue {
    pub fn new(tenant: TenantId, gateway: Gateway) -> Self {
        Catalogue { tenant, gateway, known: RwLock::default(), generation: watch::Sender::new(0), views: Mutex::default() }
    }

    /// Everything that is known now.
    pub fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told whenever something changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// Takes in what was read; an older version than the known one changes nothing.
    fn put<D: Decider, I: Ord + Copy>(
        &self,
        of: impl FnOnce(&mut Known) -> &mut BTreeMap<I, Arc<Handled<D::State>>>,
        id: I,
        read: Handled<D::State>,
    ) -> bool {
        {
            let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
            let entries = of(&mut known);
            if entries.get(&id).is_some_and(|entry| entry.version >= read.version) {
                return false;
            }
            if D::is_deleted(&read.state) {
                entries.remove(&id)
            } else {
                entries.insert(id, Arc::new(read))
            };
        }
        true
    }

    fn tell(&self, is_new: bool) {
        if is_new {
            self.generation.send_modify(|generation| *generation += 1);
        }
    }

    pub fn put_server(&self, id: McpServerId, read: Handled<McpServer>) {
        self.tell(self.put::<McpServer, _>(|known| &mut known.servers, id, read));
    }

    pub fn put_tool(&self, id: ToolId, read: Handled<Tool>) {
        self.tell(self.put::<Tool, _>(|known| &mut known.tools, id, read));
    }

    pub fn put_virtual(&self, id: VirtualServerId, read: Handled<VirtualServer>) {
        self.tell(self.put::<VirtualServer, _>(|known| &mut known.virtuals, id, read));
    }

    /// What is offered does not depend on it.
    pub fn put_component(&self, id: ComponentId, read: Handled<Component>) {
        self.put::<Component, _>(|known| &mut known.components, id, read);
    }

    /// It is gone, whatever was heard of it before.
    pub fn forget_component(&self, id: ComponentId) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).components.remove(&id);
    }

    /// What is offered behind a door.
    pub fn view(&self, door: Door) -> Arc<View> {
        let stamp = (*self.generation.borrow(), self.gateway.generation());
        let kept = self.views.lock().unwrap_or_else(PoisonError::into_inner).get(&door).cloned();
        if let Some((of, view)) = kept
            && of == stamp
        {
            return view;
        }
        let offers = |server| self.gateway.offers(gateway::Key { tenant: self.tenant, server });
        let view = Arc::new(View::of(&self.known(), door, offers));
        self.views.lock().unwrap_or_else(PoisonError::into_inner).insert(door, (stamp, view.clone()));
        view
    }
}

/// Hears what changes.
#[derive(Default)]
pub(crate) struct CatalogueFollower(Vec<Entry>);

impl Process for CatalogueFollower {
    const NAME: &'static str = "catalogue";
    type Signal = ();
    /// Read this again.
    type Command = Entry;

    fn react(&mut self, event: &Recorded, _: Timestamp) {
        let stream = event.header.stream.as_str();
        let entry = stream.parse().map(Entry::Server).or_else(|_| stream.parse().map(Entry::Tool));
        let entry = entry.or_else(|_| stream.parse().map(Entry::Virtual)).or_else(|_| stream.parse().map(Entry::Component));
        if let Ok(entry) = entry
            && !self.0.contains(&entry)
        {
            self.0.push(entry);
        }
    }

    fn signal(&mut self, (): (), _: Timestamp) {}

    fn decide(&mut self, _: Timestamp, _: u64) -> Vec<Entry> {
        std::mem::take(&mut self.0)
    }

    fn due(&self) -> Option<Timestamp> {
        None
    }
}

/// Reads what changed.
pub(crate) struct CatalogueReader {
    pub engine: Engine,
    pub log: TenantId,
    pub catalogue: Arc<Catalogue>,
}

#[async_trait]
impl Executor<CatalogueFollower> for CatalogueReader {
    async fn execute(&self, entry: Entry) -> Option<()> {
        let (engine, log, catalogue) = (&self.engine, self.log, &self.catalogue);
        let read = match entry {
            Entry::Server(id) => {
                engine.entity::<McpServer>(log, &id.to_string()).await.map(|read| read.map(|read| catalogue.put_server(id, read)))
            }
            Entry::Tool(id) => {
                engine.entity::<Tool>(log, &id.to_string()).await.map(|read| read.map(|read| catalogue.put_tool(id, read)))
            }
            Entry::Virtual(id) => engine
                .entity::<VirtualServer>(log, &id.to_string())
                .await
                .map(|read| read.map(|read| catalogue.put_virtual(id, read))),
            Entry::Component(id) => engine
                .entity::<Component>(log, &id.to_string())
                .await
                .map(|read| read.map(|read| catalogue.put_component(id, read))),
        };
        if let Err(error) = read {
            tracing::error!(%error, ?entry, "the catalogue could not read what changed");
        }
        None
    }
}
