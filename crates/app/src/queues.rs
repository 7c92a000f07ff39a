//! Queues: their settings. A queue exists as soon as a task or a setting names it.

use crate::app::App;
use crate::errors::Problems;
use crate::{Answer, Caller, ListOrder, Page};
use domain::queue::{Configured, DEFAULT_QUEUE, Queue, queue_id};
use engine::{Extras, Handled, Step};

impl App {
    /// Configured queues; the default one is always there.
    pub async fn queues(&self, caller: &Caller, order: &ListOrder) -> Answer<(Page<Configured>, Option<Configured>)> {
        let tenant = caller.actor.tenant;
        let page = self.list_queues(caller, order).await?;
        let default = queue_id(&tenant, DEFAULT_QUEUE).to_string();
        let is_first_page = order.after.is_none();
        let is_configured = self.entity::<Queue>(tenant, &default).await?.is_some();
        Ok((page, (is_first_page && !is_configured).then(|| Configured::unconfigured(DEFAULT_QUEUE))))
    }

    async fn list_queues(&self, caller: &Caller, order: &ListOrder) -> Answer<Page<Configured>> {
        self.list::<Queue>(caller, order, vec![]).await
    }

    /// Replaces a queue's settings.
    pub async fn configure_queue(&self, caller: &Caller, configured: Configured) -> Answer<Handled<Configured>> {
        let mut problems = Problems::default();
        problems.name("/name", &configured.name);
        let w = configured.weights;
        for (name, weight) in [("specialisation", w.specialisation), ("success", w.success), ("load", w.load), ("cost", w.cost)] {
            if !(0.0..=1_000.0).contains(&weight) {
                problems.add(format!("/weights/{name}"), "must be 0 to 1000");
            }
        }
        if configured.max_concurrency == Some(0) {
            problems.add("/max_concurrency", "must be at least 1; use \"paused\" to stop a queue");
        }
        if configured.rate_per_s.is_some_and(|rate| !(0.001..=1_000_000.0).contains(&rate)) {
            problems.add("/rate_per_s", "must be 0.001 to 1000000");
        }
        problems.check()?;
        let mut problems = Problems::default();
        if [w.specialisation, w.success, w.load, w.cost].iter().sum::<f64>() <= 0.0 {
            problems.add("/weights", "at least one must be above 0");
        }
        problems.refuse()?;
        let id = queue_id(&caller.actor.tenant, &configured.name);
        self.execute::<Queue>(caller, Step::on::<Queue>(id, configured), Extras::default()).await
    }
}
