-- What stands beside procrastinate's tables. The order is procrastinate's: a job of one lock starts only after
-- the jobs of that lock with smaller ids have ended. One of its jobs is what one request adds to one lane;
-- each task of it is a row of ours.

CREATE TABLE fifo_background_schema (version int NOT NULL);
INSERT INTO fifo_background_schema VALUES (1);

CREATE TABLE fifo_background_tasks (
    number bigint GENERATED ALWAYS AS IDENTITY,
    id text PRIMARY KEY,
    job_id bigint NOT NULL,          -- of procrastinate_jobs: see `fifo_background_forget`
    place int NOT NULL,
    queue text NOT NULL,
    lane text NOT NULL,              -- the key, as the codec writes it
    function text NOT NULL,          -- "module:name"
    arguments text NOT NULL,         -- as the codec writes them
    options jsonb NOT NULL,
    request text,                    -- the method and path of the request that added it
    carried jsonb,                   -- the context that travels with it
    state text NOT NULL DEFAULT 'queued',
    attempts int NOT NULL DEFAULT 0, -- how often it was started, and not interrupted
    crashes int NOT NULL DEFAULT 0,  -- how often its worker was lost while it ran
    cancel_requested boolean NOT NULL DEFAULT false,
    watched boolean NOT NULL DEFAULT false, -- somebody waits for its end
    added_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    started_at timestamptz,
    ended_at timestamptz,
    ended_number bigint,             -- its place in the order of ends
    progress jsonb,
    result text,
    result_omitted text,
    error_type text,
    error text
);
CREATE INDEX fifo_background_tasks_job ON fifo_background_tasks (job_id, place);
CREATE INDEX fifo_background_tasks_state ON fifo_background_tasks (queue, state, number);
CREATE INDEX fifo_background_tasks_lane ON fifo_background_tasks (queue, lane, job_id, place)
    WHERE state IN ('queued', 'running');
CREATE INDEX fifo_background_tasks_ended ON fifo_background_tasks (queue, ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX fifo_background_tasks_not_numbered ON fifo_background_tasks (queue, ended_at)
    WHERE ended_at IS NOT NULL AND ended_number IS NULL;
CREATE INDEX fifo_background_tasks_ended_number ON fifo_background_tasks (queue, ended_number)
    WHERE ended_number IS NOT NULL;
CREATE INDEX fifo_background_tasks_lane_ended ON fifo_background_tasks (queue, lane, ended_number)
    WHERE ended_number IS NOT NULL;

-- A task goes with its job. A foreign key would do it, too, but lock the job's row once more for each task: storing
-- a task would take a tenth longer.
CREATE FUNCTION fifo_background_forget() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        TRUNCATE fifo_background_tasks;
    ELSE
        DELETE FROM fifo_background_tasks WHERE job_id = OLD.id;
    END IF;
    RETURN NULL;
END;
$$;
CREATE TRIGGER fifo_background_jobs_deleted AFTER DELETE ON procrastinate_jobs
    FOR EACH ROW WHEN (OLD.task_name = 'fifo_background') EXECUTE FUNCTION fifo_background_forget();
CREATE TRIGGER fifo_background_jobs_truncated AFTER TRUNCATE ON procrastinate_jobs
    FOR EACH STATEMENT EXECUTE FUNCTION fifo_background_forget();

-- The order of ends, and how many have ended in which way since the tables were made.
CREATE TABLE fifo_background_queues (
    queue text PRIMARY KEY,
    epoch text NOT NULL DEFAULT replace(gen_random_uuid()::text, '-', ''), -- tells these numbers from others
    ended bigint NOT NULL DEFAULT 0,     -- the number of the last end
    forgotten bigint NOT NULL DEFAULT 0, -- the number of the last end that was pruned
    states jsonb NOT NULL DEFAULT '{}'
);

-- A worker, and after how many seconds without a heartbeat it counts as lost. Where its row of procrastinate
-- is gone, it is lost.
CREATE TABLE fifo_background_workers (
    id bigint PRIMARY KEY REFERENCES procrastinate_workers ON DELETE CASCADE,
    queue text NOT NULL,
    lost_after double precision NOT NULL,
    host text NOT NULL,
    pid int NOT NULL,
    concurrency int NOT NULL,
    started_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The fetch looks for the head of each lock, and for the first of the retries that wait.
CREATE INDEX fifo_background_jobs_lock_id ON procrastinate_jobs (lock, id) WHERE status IN ('todo', 'doing');
CREATE INDEX fifo_background_jobs_scheduled ON procrastinate_jobs (queue_name, scheduled_at)
    WHERE status = 'todo' AND scheduled_at IS NOT NULL;
-- Without statistics the planner sorts all waiting jobs for each fetch.
ALTER FUNCTION procrastinate_fetch_job_v2(character varying[], bigint) SET enable_sort = off;

-- Where a worker is deleted, all jobs that have its id are changed: those in hand, and none of those that ended.
CREATE INDEX fifo_background_jobs_worker ON procrastinate_jobs (worker_id) WHERE worker_id IS NOT NULL;
CREATE FUNCTION fifo_background_leave_worker() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.worker_id := NULL;
    RETURN NEW;
END;
$$;
CREATE TRIGGER fifo_background_jobs_worker BEFORE UPDATE OF status ON procrastinate_jobs
    FOR EACH ROW WHEN (OLD.status = 'doing' AND NEW.status <> 'doing' AND NEW.task_name = 'fifo_background')
    EXECUTE FUNCTION fifo_background_leave_worker();

-- Procrastinate writes events and sends two notifications for each job. Ours do without, which makes storing them
-- cheaper by about a seventh: a task's row has its times, and `fifo_background_notify` tells our processes.
DROP TRIGGER procrastinate_jobs_notify_queue_job_inserted_v1 ON procrastinate_jobs;
CREATE TRIGGER procrastinate_jobs_notify_queue_job_inserted_v1 AFTER INSERT ON procrastinate_jobs
    FOR EACH ROW WHEN (NEW.status = 'todo' AND NEW.task_name NOT IN ('fifo_background', 'fifo_background_pause'))
    EXECUTE FUNCTION procrastinate_notify_queue_job_inserted_v1();
DROP TRIGGER procrastinate_trigger_status_events_insert_v1 ON procrastinate_jobs;
CREATE TRIGGER procrastinate_trigger_status_events_insert_v1 AFTER INSERT ON procrastinate_jobs
    FOR EACH ROW WHEN (NEW.status = 'todo' AND NEW.task_name <> 'fifo_background')
    EXECUTE FUNCTION procrastinate_trigger_function_status_events_insert_v1();
DROP TRIGGER procrastinate_trigger_status_events_update_v1 ON procrastinate_jobs;
CREATE TRIGGER procrastinate_trigger_status_events_update_v1 AFTER UPDATE OF status ON procrastinate_jobs
    FOR EACH ROW WHEN (NEW.task_name <> 'fifo_background')
    EXECUTE FUNCTION procrastinate_trigger_function_status_events_update_v1();

-- Wakes workers, or tells processes what has happened.
CREATE FUNCTION fifo_background_notify(_queue text, _what text) RETURNS void LANGUAGE sql AS $$
    SELECT pg_notify('fifo_background#' || _queue, _what);
$$;

-- Numbers the tasks that have ended, and returns the row of their queue. Ends are committed in another order
-- than they happen in. So they are numbered afterwards, by one transaction at a time: who has seen a number
-- misses no smaller one. `_waits`: for another one that does it; otherwise that one does it for both.
CREATE FUNCTION fifo_background_number_ends(_queue text, _waits boolean) RETURNS fifo_background_queues
LANGUAGE plpgsql AS $$
DECLARE
    _row fifo_background_queues;
    _new record;
BEGIN
    SELECT * FROM fifo_background_queues WHERE queue = _queue INTO _row;
    IF _row.queue IS NULL THEN
        INSERT INTO fifo_background_queues (queue) VALUES (_queue) ON CONFLICT DO NOTHING;
    END IF;
    PERFORM FROM fifo_background_tasks
        WHERE queue = _queue AND ended_at IS NOT NULL AND ended_number IS NULL LIMIT 1;
    IF NOT FOUND AND _row.queue IS NOT NULL THEN
        RETURN _row;
    END IF;
    IF _waits THEN
        SELECT * FROM fifo_background_queues WHERE queue = _queue FOR UPDATE INTO _row;
    ELSE
        SELECT * FROM fifo_background_queues WHERE queue = _queue FOR UPDATE SKIP LOCKED INTO _row;
        IF NOT FOUND THEN
            RETURN NULL;
        END IF;
    END IF;
    WITH ended AS (
        SELECT id, state, ended_at, number FROM fifo_background_tasks
        WHERE queue = _queue AND ended_at IS NOT NULL AND ended_number IS NULL
        ORDER BY ended_at LIMIT 50000 FOR UPDATE SKIP LOCKED
    ), numbered AS (
        UPDATE fifo_background_tasks AS task SET ended_number = _row.ended + place.place
        FROM (SELECT id, row_number() OVER (ORDER BY ended_at, number) AS place FROM ended) AS place
        WHERE task.id = place.id RETURNING task.state
    ) SELECT sum(count) AS count, jsonb_object_agg(state, count) AS states
        FROM (SELECT state, count(*) FROM numbered GROUP BY state) AS those INTO _new;
    UPDATE fifo_background_queues SET ended = ended + coalesce(_new.count, 0), states = states || coalesce((
        SELECT jsonb_object_agg(key, value::bigint + coalesce((states ->> key)::bigint, 0))
        FROM jsonb_each_text(_new.states)
    ), '{}') WHERE queue = _queue RETURNING * INTO _row;
    RETURN _row;
END;
$$;

-- Stores what a request has added: a list of {lock, lane, request, tasks}. All of it or nothing. A try before this
-- one may have stored some of it: its answer was lost.
CREATE FUNCTION fifo_background_store(_queue text, _groups jsonb, _max_waiting int) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    _group jsonb;
    _job bigint;
    _place int;
    _waiting int;
BEGIN
    IF _max_waiting IS NOT NULL THEN
        SELECT count(*) FROM (
            SELECT FROM fifo_background_tasks WHERE queue = _queue AND state = 'queued' LIMIT _max_waiting
        ) AS first INTO _waiting;
        IF _waiting >= _max_waiting THEN
            PERFORM FROM fifo_background_tasks WHERE id = _groups -> 0 -> 'tasks' -> 0 ->> 'id';
            IF NOT FOUND THEN -- else the try before this one has stored it, and its answer was lost
                RAISE EXCEPTION 'queue full: % tasks wait', _waiting USING ERRCODE = 'FB001';
            END IF;
        END IF;
    END IF;
    FOR _place IN 0 .. jsonb_array_length(_groups) - 1 LOOP
        _group := _groups -> _place;
        -- what `procrastinate_defer_jobs_v1` does with one job, at less cost
        INSERT INTO procrastinate_jobs (queue_name, task_name, lock)
            VALUES (_queue, 'fifo_background', _group ->> 'lock') RETURNING id INTO _job;
        INSERT INTO fifo_background_tasks
            (id, job_id, place, queue, lane, function, arguments, options, request, carried)
        SELECT task ->> 'id', _job, (task -> 'place')::int, _queue, _group ->> 'lane', task ->> 'function',
            task ->> 'arguments', task -> 'options', _group ->> 'request', task -> 'carried'
        FROM jsonb_array_elements(_group -> 'tasks') AS task
        ON CONFLICT (id) DO NOTHING;
        IF NOT FOUND THEN
            DELETE FROM procrastinate_jobs WHERE id = _job;
        END IF;
    END LOOP;
    PERFORM fifo_background_notify(_queue, 'wake');
END;
$$;

CREATE FUNCTION fifo_background_register(
    _queue text, _lost_after double precision, _host text, _pid int, _concurrency int
) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    _id bigint;
BEGIN
    SELECT worker_id FROM procrastinate_register_worker_v1() INTO _id;
    INSERT INTO fifo_background_workers (id, queue, lost_after, host, pid, concurrency)
        VALUES (_id, _queue, _lost_after, _host, _pid, _concurrency);
    RETURN _id;
END;
$$;

-- Whether a fetch may find something: it looks at the first job of each lane. Procrastinate's fetch looks at all
-- that waits before it finds nothing, and a worker without work is woken by each job that is stored.
CREATE FUNCTION fifo_background_any_free(_queue text) RETURNS boolean LANGUAGE sql AS $$
    WITH RECURSIVE lanes AS (
        (SELECT lock FROM procrastinate_jobs WHERE status IN ('todo', 'doing') AND lock IS NOT NULL
            ORDER BY lock LIMIT 1)
        UNION ALL
        SELECT (SELECT job.lock FROM procrastinate_jobs AS job
            WHERE job.status IN ('todo', 'doing') AND job.lock > lanes.lock ORDER BY job.lock LIMIT 1)
        FROM lanes WHERE lanes.lock IS NOT NULL
    )
    SELECT EXISTS (
        SELECT FROM lanes CROSS JOIN LATERAL (
            SELECT * FROM procrastinate_jobs AS job
                WHERE job.lock = lanes.lock AND job.status IN ('todo', 'doing') ORDER BY job.id LIMIT 1
        ) AS head
        WHERE head.queue_name = _queue AND head.status = 'todo'
            AND (head.scheduled_at IS NULL OR head.scheduled_at <= now())
            AND NOT EXISTS (SELECT FROM procrastinate_jobs AS pause
                WHERE pause.queueing_lock = 'pause ' || lanes.lock AND pause.status = 'todo')
    );
$$;

-- The next job whose lane is free, with its tasks; its first one runs from here on. Else {"next_at"}: when
-- the first of the retries that wait is due, in seconds from now. One that is due already waits for its lane.
CREATE FUNCTION fifo_background_fetch(_queue text, _worker bigint) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    _job procrastinate_jobs;
    _first text;
BEGIN
    LOOP
        _job := NULL;
        IF fifo_background_any_free(_queue) THEN
            SELECT * FROM procrastinate_fetch_job_v2(ARRAY[_queue]::varchar[], _worker) INTO _job;
        END IF;
        IF _job.id IS NULL THEN
            RETURN jsonb_build_object('next_at', (
                -- one that was due already waits for something else, whose end is told
                SELECT extract(epoch FROM min(scheduled_at) - clock_timestamp()) FROM procrastinate_jobs
                WHERE status = 'todo' AND queue_name = _queue AND scheduled_at > now()
            ));
        END IF;
        SELECT id FROM fifo_background_tasks WHERE job_id = _job.id AND state = 'queued'
            ORDER BY place LIMIT 1 INTO _first;
        EXIT WHEN _first IS NOT NULL;
        PERFORM procrastinate_finish_job_v1(_job.id, 'succeeded', false); -- all of it was cancelled meanwhile
    END LOOP;
    UPDATE fifo_background_tasks SET state = 'running', started_at = clock_timestamp(), attempts = attempts + 1
        WHERE id = _first;
    RETURN jsonb_build_object(
        'job', _job.id, 'attempts', _job.attempts, 'lock', _job.lock, 'tasks', (
            SELECT jsonb_agg(jsonb_build_object(
                'id', id, 'function', function, 'arguments', arguments, 'options', options, 'lane', lane,
                'request', request, 'carried', carried, 'attempts', attempts,
                'age', extract(epoch FROM clock_timestamp() - added_at)
            ) ORDER BY place)
            FROM fifo_background_tasks WHERE job_id = _job.id AND state IN ('running', 'queued')
        )
    );
END;
$$;

-- Whether a worker still has a job; it cannot be taken from it before the transaction has ended.
CREATE FUNCTION fifo_background_holds(_worker bigint, _job bigint, _attempts int) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM procrastinate_jobs
        WHERE id = _job AND status = 'doing' AND worker_id = _worker AND attempts = _attempts FOR UPDATE;
    RETURN FOUND;
END;
$$;

-- A task has ended: {id, state, result, result_omitted, error_type, error, skip, stop, retry_in, fetch}.
-- Returns null where the worker does not have the job anymore, {"next": id} for the next task of the job, else
-- {"fetched"}: what the worker has next. It may be told twice: what is known already is answered as it was the
-- first time. The lane that is free now is told of after it: what is stored meanwhile finds it busy, and others.
CREATE FUNCTION fifo_background_end(
    _queue text, _worker bigint, _job bigint, _attempts int, _end jsonb
) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    _next text;
    _is_cancelled boolean;
BEGIN
    IF NOT fifo_background_holds(_worker, _job, _attempts) THEN
        RETURN NULL;
    END IF;
    SELECT cancel_requested FROM fifo_background_tasks WHERE id = _end ->> 'id' AND state = 'running'
        INTO _is_cancelled;
    IF NOT FOUND THEN -- it was told before, and the answer was lost
        SELECT id FROM fifo_background_tasks WHERE job_id = _job AND state = 'running' INTO _next;
        RETURN jsonb_build_object('next', _next);
    END IF;
    IF _end ->> 'retry_in' IS NOT NULL AND NOT _is_cancelled THEN
        UPDATE fifo_background_tasks
            SET state = 'queued', error_type = _end ->> 'error_type', error = _end ->> 'error', progress = NULL
            WHERE id = _end ->> 'id';
        PERFORM procrastinate_retry_job_v2(
            _job, clock_timestamp() + make_interval(secs => (_end ->> 'retry_in')::double precision),
            NULL, NULL, NULL
        );
        PERFORM fifo_background_notify(_queue, 'wake'); -- each worker learns when it is due
    ELSE
        UPDATE fifo_background_tasks SET
            state = _end ->> 'state', ended_at = clock_timestamp(), result = _end ->> 'result',
            result_omitted = _end ->> 'result_omitted', error_type = _end ->> 'error_type', error = _end ->> 'error'
            WHERE id = _end ->> 'id';
        IF (_end ->> 'skip')::boolean THEN
            PERFORM fifo_background_skip_rest(_job);
        END IF;
        PERFORM fifo_background_notify(_queue, 'ended ' || id)
            FROM fifo_background_tasks WHERE job_id = _job AND watched AND ended_at IS NOT NULL;
        IF (_end ->> 'stop')::boolean THEN -- at the head, where nobody serves
            PERFORM procrastinate_retry_job_v2(_job, NULL, NULL, fifo_background_stopped(_queue), NULL);
            PERFORM fifo_background_notify(_queue, 'stopped');
        ELSE
            SELECT id FROM fifo_background_tasks WHERE job_id = _job AND state = 'queued'
                ORDER BY place LIMIT 1 INTO _next;
            IF _next IS NOT NULL AND fifo_background_is_paused(_queue, _job) THEN
                PERFORM procrastinate_retry_job_v2(_job, NULL, NULL, NULL, NULL); -- behind the pause
            ELSIF _next IS NOT NULL THEN
                UPDATE fifo_background_tasks
                    SET state = 'running', started_at = clock_timestamp(), attempts = attempts + 1
                    WHERE id = _next;
                RETURN jsonb_build_object('next', _next);
            ELSE
                PERFORM fifo_background_finish(_job);
            END IF;
        END IF;
    END IF;
    RETURN jsonb_build_object(
        'fetched', CASE WHEN (_end ->> 'fetch')::boolean THEN fifo_background_fetch(_queue, _worker) END
    );
END;
$$;

CREATE FUNCTION fifo_background_skip_rest(_job bigint) RETURNS void LANGUAGE sql AS $$
    UPDATE fifo_background_tasks SET state = 'skipped', ended_at = clock_timestamp()
        WHERE job_id = _job AND state = 'queued';
$$;

-- Where procrastinate keeps what stays at the head of a stopped lane, and what stands before a paused one.
CREATE FUNCTION fifo_background_stopped(_queue text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT left(_queue, 100) || '#stopped';
$$;
CREATE FUNCTION fifo_background_paused(_queue text) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT left(_queue, 100) || '#paused';
$$;

-- Whether the lane of a job is paused.
CREATE FUNCTION fifo_background_is_paused(_queue text, _job bigint) RETURNS boolean LANGUAGE sql AS $$
    SELECT EXISTS (
        SELECT FROM procrastinate_jobs AS pause JOIN procrastinate_jobs AS job ON job.lock = pause.lock
        WHERE job.id = _job AND pause.status = 'todo' AND pause.queue_name = fifo_background_paused(_queue)
    );
$$;

-- All tasks of a job have ended.
CREATE FUNCTION fifo_background_finish(_job bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM fifo_background_tasks WHERE job_id = _job AND state = 'failed';
    PERFORM procrastinate_finish_job_v1(
        _job, (CASE WHEN FOUND THEN 'failed' ELSE 'succeeded' END)::procrastinate_job_status, false
    );
END;
$$;

-- The task of a job that was interrupted waits again, unless it is to be cancelled. That run does not count.
CREATE FUNCTION fifo_background_interrupted(_job bigint, _crashes int) RETURNS void LANGUAGE sql AS $$
    UPDATE fifo_background_tasks SET
        state = CASE WHEN cancel_requested THEN 'cancelled' ELSE 'queued' END,
        ended_at = CASE WHEN cancel_requested THEN clock_timestamp() END,
        started_at = CASE WHEN cancel_requested THEN started_at END,
        attempts = attempts - 1, crashes = crashes + _crashes, progress = NULL
        WHERE job_id = _job AND state = 'running';
$$;

-- A job that is in no worker's hand anymore is at the head of its lane again, or ends where nothing is left of it.
CREATE FUNCTION fifo_background_put_back(_queue text, _job bigint, _stops boolean) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM fifo_background_notify(_queue, 'ended ' || id)
        FROM fifo_background_tasks WHERE job_id = _job AND watched AND ended_at IS NOT NULL;
    PERFORM FROM fifo_background_tasks WHERE job_id = _job AND state = 'queued';
    IF FOUND OR _stops THEN
        PERFORM procrastinate_retry_job_v2(
            _job, NULL, NULL, CASE WHEN _stops THEN fifo_background_stopped(_queue) END, NULL
        );
        PERFORM fifo_background_notify(_queue, 'stopped') WHERE _stops;
    ELSE
        PERFORM fifo_background_finish(_job);
    END IF;
    PERFORM fifo_background_notify(_queue, 'wake');
END;
$$;

-- A worker that stops gives back what it has in hand.
CREATE FUNCTION fifo_background_give_back(_queue text, _worker bigint, _job bigint, _attempts int)
RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF NOT fifo_background_holds(_worker, _job, _attempts) THEN
        RETURN false;
    END IF;
    PERFORM fifo_background_interrupted(_job, 0);
    PERFORM fifo_background_put_back(_queue, _job, false);
    RETURN true;
END;
$$;

-- The task of a job was interrupted by what it, or its worker, does: it runs again, and fails after so many times.
CREATE FUNCTION fifo_background_crashed(_queue text, _job bigint, _most_crashes int, _type text, _text text)
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    _failed fifo_background_tasks;
BEGIN
    PERFORM fifo_background_interrupted(_job, 1);
    UPDATE fifo_background_tasks SET
        state = 'failed', ended_at = clock_timestamp(), error_type = _type,
        error = _text || ', ' || crashes || ' times'
        WHERE job_id = _job AND state = 'queued' AND crashes >= _most_crashes
        RETURNING * INTO _failed;
    IF FOUND AND _failed.options ->> 'rest' IS DISTINCT FROM 'run' THEN
        PERFORM fifo_background_skip_rest(_job);
    END IF;
    PERFORM fifo_background_put_back(_queue, _job, coalesce(_failed.options ->> 'after_failure' = 'stop', false));
END;
$$;

-- A worker could not run what it has in hand, because of an error of its own.
CREATE FUNCTION fifo_background_could_not_run(
    _queue text, _worker bigint, _job bigint, _attempts int, _most_crashes int, _type text
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF fifo_background_holds(_worker, _job, _attempts) THEN
        PERFORM fifo_background_crashed(_queue, _job, _most_crashes, _type, 'a worker could not run it');
    END IF;
END;
$$;

-- Takes the jobs of lost workers from them, and ends tasks that have lost too many. Jobs are locked before the
-- rows of their workers, as where a worker ends one and fetches the next. A heartbeat that comes at the same
-- moment either keeps the row of its worker, or finds it gone. `_unchanged`: {id: [heartbeat, seconds]} of the
-- workers that were silent for so long by the clock of who asks. Where the server's clock is set, all of them may
-- look silent here, or none.
-- Returns {recovered, heartbeats}; the latter is {id: [heartbeat, lost_after]} of all workers.
CREATE FUNCTION fifo_background_recover(_queue text, _most_crashes int, _unchanged jsonb) RETURNS jsonb
LANGUAGE plpgsql AS $$
DECLARE
    _lost bigint[];
    _job bigint;
    _recovered int := 0;
BEGIN
    SELECT array_agg(worker.id)
        FROM fifo_background_workers AS ours JOIN procrastinate_workers AS worker ON worker.id = ours.id
        WHERE ours.queue = _queue AND _unchanged -> worker.id::text ->> 0 = worker.last_heartbeat::text
            AND (worker.last_heartbeat < clock_timestamp() - make_interval(secs => ours.lost_after)
                OR (_unchanged -> worker.id::text ->> 1)::double precision >= ours.lost_after)
        INTO _lost;
    IF _lost IS NOT NULL THEN
        PERFORM FROM procrastinate_jobs
            WHERE status = 'doing' AND worker_id = ANY(_lost) ORDER BY id FOR UPDATE;
        DELETE FROM procrastinate_workers
            WHERE id = ANY(_lost) AND _unchanged -> id::text ->> 0 = last_heartbeat::text;
        PERFORM fifo_background_notify(_queue, 'wake'); -- it may have been the one that knew of a free lane
    END IF;
    FOR _job IN
        SELECT id FROM procrastinate_jobs
            WHERE status = 'doing' AND queue_name = _queue AND worker_id IS NULL
            ORDER BY id FOR UPDATE SKIP LOCKED
    LOOP
        PERFORM fifo_background_crashed(
            _queue, _job, _most_crashes, 'WorkerLost', 'the worker that ran it was lost'
        );
        _recovered := _recovered + 1;
    END LOOP;
    PERFORM fifo_background_number_ends(_queue, false);
    RETURN jsonb_build_object('recovered', _recovered, 'heartbeats', coalesce((
        SELECT jsonb_object_agg(worker.id, jsonb_build_array(worker.last_heartbeat::text, ours.lost_after))
        FROM fifo_background_workers AS ours JOIN procrastinate_workers AS worker ON worker.id = ours.id
        WHERE ours.queue = _queue
    ), '{}'));
END;
$$;

-- Cancels a task: it never runs, or its worker is asked to cancel it. Returns the state that it had; "thread" if
-- it runs in a thread, which nothing can end.
CREATE FUNCTION fifo_background_cancel(_queue text, _id text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    _job bigint;
    _state text;
BEGIN
    SELECT job_id FROM fifo_background_tasks WHERE id = _id AND queue = _queue INTO _job;
    PERFORM FROM procrastinate_jobs WHERE id = _job FOR UPDATE; -- before a task of it, as everywhere
    SELECT CASE WHEN state = 'running' AND options ? 'thread' THEN 'thread' ELSE state END
        FROM fifo_background_tasks WHERE id = _id AND queue = _queue FOR UPDATE INTO _state;
    IF _state = 'running' THEN
        UPDATE fifo_background_tasks SET cancel_requested = true WHERE id = _id;
        PERFORM fifo_background_notify(_queue, 'cancel ' || _id);
    ELSIF _state = 'queued' THEN
        UPDATE fifo_background_tasks SET state = 'cancelled', ended_at = clock_timestamp() WHERE id = _id;
        PERFORM fifo_background_notify(_queue, 'ended ' || id) FROM fifo_background_tasks WHERE id = _id AND watched;
        PERFORM fifo_background_notify(_queue, 'changed');
        PERFORM fifo_background_shrunk(_queue, _job);
    END IF;
    PERFORM fifo_background_notify(_queue, 'wake'); -- a fetch may have passed over the job while it was locked
    RETURN _state;
END;
$$;

-- Tasks of a waiting job were cancelled or skipped: it ends where it has nothing to run anymore, and what is left
-- does not wait for the retry of one that is gone. A stopped lane stands until its failed task is dealt with.
CREATE FUNCTION fifo_background_shrunk(_queue text, _job bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM fifo_background_tasks WHERE job_id = _job AND state IN ('queued', 'running');
    IF NOT FOUND THEN
        PERFORM procrastinate_cancel_job_v1(id, false, false)
            FROM procrastinate_jobs WHERE id = _job AND queue_name = _queue;
    ELSE
        UPDATE procrastinate_jobs SET scheduled_at = NULL WHERE id = _job AND scheduled_at IS NOT NULL
            AND 0 = (SELECT attempts FROM fifo_background_tasks WHERE job_id = _job AND state = 'queued'
                ORDER BY place LIMIT 1);
    END IF;
END;
$$;

-- Marks a task as watched, and returns its state; "stopped" where it waits in a lane that has stopped.
CREATE FUNCTION fifo_background_watch(_queue text, _id text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    _task fifo_background_tasks;
    _head procrastinate_jobs;
BEGIN
    UPDATE fifo_background_tasks SET watched = true WHERE id = _id AND queue = _queue RETURNING * INTO _task;
    IF _task.state = 'queued' THEN
        _head := fifo_background_head_job(_queue, _queue || '/' || _task.lane);
        IF _head.queue_name = fifo_background_stopped(_queue) THEN
            RETURN 'stopped';
        END IF;
    END IF;
    RETURN _task.state;
END;
$$;

-- A job of higher priority, in a queue that nobody serves, stands before the lane: it works on empty lanes, too.
CREATE FUNCTION fifo_background_pause(_queue text, _lock text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    PERFORM procrastinate_defer_jobs_v1(ARRAY[ROW(
        fifo_background_paused(_queue), 'fifo_background_pause', 1, _lock, 'pause ' || _lock, '{}'::jsonb, NULL
    )::procrastinate_job_to_defer_v1]);
    PERFORM fifo_background_notify(_queue, 'changed');
    RETURN true;
EXCEPTION WHEN unique_violation THEN
    RETURN false;
END;
$$;

CREATE FUNCTION fifo_background_resume(_queue text, _lock text) RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    _job bigint;
BEGIN
    SELECT procrastinate_cancel_job_v1(id, false, true) FROM procrastinate_jobs
        WHERE lock = _lock AND queue_name = fifo_background_paused(_queue) AND status = 'todo' INTO _job;
    IF _job IS NULL THEN
        RETURN false;
    END IF;
    PERFORM fifo_background_notify(_queue, 'wake');
    RETURN true;
END;
$$;

-- The failed task at the head of a stopped lane runs again. Returns its id, or null.
CREATE FUNCTION fifo_background_retry_head(_queue text, _lock text, _head text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    _job bigint;
    _id text;
BEGIN
    PERFORM fifo_background_number_ends(_queue, true); -- so that this end counts, too
    SELECT id FROM procrastinate_jobs
        WHERE lock = _lock AND queue_name = fifo_background_stopped(_queue) AND status = 'todo'
        FOR UPDATE INTO _job;
    SELECT id FROM fifo_background_tasks WHERE job_id = _job AND state = 'failed'
        ORDER BY place DESC LIMIT 1 INTO _id;
    IF _id IS NULL OR (_head IS NOT NULL AND _head <> _id) THEN
        RETURN NULL;
    END IF;
    UPDATE fifo_background_tasks SET
        state = 'queued', started_at = NULL, ended_at = NULL, ended_number = NULL, error = NULL,
        error_type = NULL, crashes = 0, cancel_requested = false, progress = NULL
        WHERE id = _id;
    UPDATE procrastinate_jobs SET queue_name = _queue WHERE id = _job;
    PERFORM fifo_background_notify(_queue, 'wake');
    RETURN _id;
END;
$$;

-- Leaves out the head of a lane: the failed task of a stopped one, else the first that waits. Returns its id.
CREATE FUNCTION fifo_background_skip_head(_queue text, _lock text, _head text) RETURNS text
LANGUAGE plpgsql AS $$
DECLARE
    _job procrastinate_jobs;
    _id text;
BEGIN
    SELECT * FROM procrastinate_jobs AS job
        WHERE lock = _lock AND status IN ('todo', 'doing') AND queue_name <> fifo_background_paused(_queue)
            AND (queue_name = fifo_background_stopped(_queue)
                OR EXISTS (SELECT FROM fifo_background_tasks WHERE job_id = job.id AND state = 'queued'))
        ORDER BY id LIMIT 1 FOR UPDATE INTO _job;
    PERFORM fifo_background_notify(_queue, 'wake'); -- a fetch may pass over the job while it is locked
    IF _job.queue_name = fifo_background_stopped(_queue) THEN
        SELECT id FROM fifo_background_tasks WHERE job_id = _job.id AND state = 'failed'
            ORDER BY place DESC LIMIT 1 INTO _id;
    ELSE
        SELECT id FROM fifo_background_tasks WHERE job_id = _job.id AND state = 'queued'
            ORDER BY place LIMIT 1 INTO _id;
    END IF;
    IF _id IS NULL OR (_head IS NOT NULL AND _head <> _id) THEN
        RETURN NULL;
    END IF;
    IF _job.queue_name = fifo_background_stopped(_queue) THEN
        UPDATE procrastinate_jobs SET queue_name = _queue WHERE id = _job.id;
        PERFORM FROM fifo_background_tasks WHERE job_id = _job.id AND state = 'queued';
        IF NOT FOUND THEN
            PERFORM procrastinate_finish_job_v1(_job.id, 'failed', false);
        END IF;
    ELSE
        UPDATE fifo_background_tasks SET state = 'skipped', ended_at = clock_timestamp() WHERE id = _id;
        PERFORM fifo_background_notify(_queue, 'ended ' || id) FROM fifo_background_tasks WHERE id = _id AND watched;
        PERFORM fifo_background_shrunk(_queue, _job.id);
    END IF;
    RETURN _id;
END;
$$;

-- Cancels all tasks that wait in a lane; a stopped lane goes on. Returns their ids.
CREATE FUNCTION fifo_background_clear(_queue text, _lock text) RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    _job record;
    _some text[];
    _all text[] := '{}';
BEGIN
    FOR _job IN
        SELECT id, queue_name, status FROM procrastinate_jobs
            WHERE lock = _lock AND queue_name <> fifo_background_paused(_queue) AND status IN ('todo', 'doing')
            ORDER BY id FOR UPDATE
    LOOP
        WITH cleared AS (
            UPDATE fifo_background_tasks SET state = 'cancelled', ended_at = clock_timestamp()
                WHERE job_id = _job.id AND state = 'queued' RETURNING id
        ) SELECT array_agg(id) FROM cleared INTO _some;
        _all := _all || coalesce(_some, '{}');
        PERFORM fifo_background_notify(_queue, 'ended ' || id)
            FROM fifo_background_tasks WHERE id = ANY(_some) AND watched;
        IF _job.queue_name = fifo_background_stopped(_queue) THEN
            UPDATE procrastinate_jobs SET queue_name = _queue WHERE id = _job.id;
            PERFORM procrastinate_finish_job_v1(_job.id, 'failed', false);
        ELSIF _job.status = 'todo' THEN
            PERFORM fifo_background_shrunk(_queue, _job.id);
        END IF;
    END LOOP;
    PERFORM fifo_background_notify(_queue, 'wake');
    RETURN _all;
END;
$$;

-- In what follows, `lane BETWEEN _lane AND _lane ORDER BY lane` leaves the planner no index but that of lanes,
-- also where it has no statistics; `lane = _lane` would let it walk along an index of all lanes.

-- One task as users see it; what it has returned, if that takes at most `_largest` bytes. For one that waits:
-- how many are ahead, and what blocks its lane.
CREATE FUNCTION fifo_background_picture(
    _task fifo_background_tasks, _largest int, _ahead int, _blocker jsonb
) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    _now timestamptz := clock_timestamp();
    _started timestamptz := CASE WHEN _task.state <> 'queued' THEN _task.started_at END; -- else it runs again
    _is_large boolean := octet_length(_task.result) > _largest;
BEGIN
    IF _blocker IS NULL AND _ahead = 0 THEN
        _blocker := jsonb_build_object('since', _task.added_at, 'kind', CASE WHEN EXISTS (
            SELECT FROM fifo_background_workers AS ours JOIN procrastinate_workers AS worker ON worker.id = ours.id
            WHERE ours.queue = _task.queue
                AND worker.last_heartbeat > _now - make_interval(secs => ours.lost_after)
        ) THEN 'slot' ELSE 'worker' END);
    END IF;
    RETURN jsonb_build_object(
        'id', _task.id, 'number', _task.number, 'lane', _task.lane, 'function', _task.function,
        'request', _task.request, 'state', _task.state, 'attempts', _task.attempts,
        'added_at', extract(epoch FROM _task.added_at), 'started_at', extract(epoch FROM _started),
        'ended_at', extract(epoch FROM _task.ended_at),
        'waited', extract(epoch FROM coalesce(_started, _task.ended_at, _now) - _task.added_at),
        'ran', extract(epoch FROM coalesce(_task.ended_at, _now) - _started),
        'ahead', CASE WHEN _ahead > 1000 THEN 1000 ELSE _ahead END, 'ahead_more', coalesce(_ahead > 1000, false),
        'blocked_by', CASE WHEN _blocker IS NOT NULL THEN jsonb_build_object(
            'kind', _blocker ->> 'kind', 'id', _blocker ->> 'id', 'name', _blocker ->> 'name',
            'seconds', extract(epoch FROM _now - (_blocker ->> 'since')::timestamptz)
        ) END,
        'progress', _task.progress, 'error_type', _task.error_type, 'error', _task.error,
        'result', CASE WHEN NOT _is_large THEN _task.result END,
        'result_omitted', CASE WHEN _is_large THEN 'it is large: ask for this job alone' ELSE _task.result_omitted END
    );
END;
$$;

-- Pictures of tasks, in their order. How many are ahead is counted up to 1,000, once for each lane.
CREATE FUNCTION fifo_background_pictures(_queue text, _tasks fifo_background_tasks[], _largest int) RETURNS jsonb
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    _found jsonb;
BEGIN
    WITH waiting AS MATERIALIZED (
        SELECT lane, fifo_background_blocker(_queue, lane) AS blocker
        FROM (SELECT DISTINCT lane FROM unnest(_tasks) WHERE state = 'queued') AS lanes
    ), places AS MATERIALIZED (
        SELECT first.job_id, first.place, first.ahead FROM waiting, LATERAL (
            SELECT job_id, place, row_number() OVER () - 1 AS ahead FROM (
                SELECT job_id, place FROM fifo_background_tasks -- nothing that is not in the index
                WHERE queue = _queue AND lane BETWEEN waiting.lane AND waiting.lane AND state IN ('queued', 'running')
                ORDER BY lane, job_id, place LIMIT 1001
            ) AS those
        ) AS first
    )
    SELECT jsonb_agg(fifo_background_picture(_tasks[one.place], _largest, CASE
                WHEN _tasks[one.place].state = 'queued'
                THEN coalesce(places.ahead, 1001)::int + coalesce(waiting.blocker ->> 'kind' = 'failed', false)::int
            END, waiting.blocker) ORDER BY one.place)
        FROM generate_subscripts(_tasks, 1) AS one (place)
        LEFT JOIN places ON places.job_id = _tasks[one.place].job_id AND places.place = _tasks[one.place].place
        LEFT JOIN waiting ON waiting.lane = _tasks[one.place].lane AND _tasks[one.place].state = 'queued'
        INTO _found;
    RETURN _found;
END;
$$;

-- What blocks those that wait in a lane: a running or failed task, a pause, or one that waits to be run again.
CREATE FUNCTION fifo_background_blocker(_queue text, _lane text) RETURNS jsonb LANGUAGE plpgsql AS $$
DECLARE
    _lock text := _queue || '/' || _lane;
    _job procrastinate_jobs := fifo_background_head_job(_queue, _lock);
    _head record;
    _paused timestamptz;
BEGIN
    SELECT id, split_part(function, ':', 2) AS name, coalesce(ended_at, started_at) AS since,
            CASE state WHEN 'running' THEN 'job' WHEN 'failed' THEN 'failed' ELSE 'retry' END AS kind
        FROM fifo_background_tasks WHERE job_id = _job.id AND (
            (_job.status = 'doing' AND state = 'running')
            OR (_job.queue_name = fifo_background_stopped(_queue) AND state = 'failed')
            OR (_job.scheduled_at > clock_timestamp() AND state = 'queued')
        ) ORDER BY state = 'queued', CASE WHEN state = 'queued' THEN place ELSE -place END LIMIT 1 INTO _head;
    IF _head.kind IS NULL OR _head.kind = 'retry' THEN
        _paused := fifo_background_paused_at(_queue, _lock);
        IF _paused IS NOT NULL THEN
            RETURN jsonb_build_object('kind', 'paused', 'since', _paused);
        END IF;
    END IF;
    RETURN CASE WHEN _head.kind IS NOT NULL THEN to_jsonb(_head) END;
END;
$$;

-- Since when a lane is paused.
CREATE FUNCTION fifo_background_paused_at(_queue text, _lock text) RETURNS timestamptz LANGUAGE sql AS $$
    SELECT min(at) FROM procrastinate_events WHERE job_id = (
        SELECT id FROM procrastinate_jobs
        WHERE lock = _lock AND status = 'todo' AND queue_name = fifo_background_paused(_queue) LIMIT 1
    );
$$;

-- The job of a lane that runs or, if none does, the first one.
CREATE FUNCTION fifo_background_head_job(_queue text, _lock text) RETURNS procrastinate_jobs
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
DECLARE
    _job procrastinate_jobs;
BEGIN
    SELECT * FROM procrastinate_jobs WHERE lock = _lock AND status = 'doing' INTO _job;
    IF NOT FOUND THEN
        SELECT * FROM procrastinate_jobs WHERE lock BETWEEN _lock AND _lock AND status IN ('todo', 'doing')
            AND queue_name <> fifo_background_paused(_queue) ORDER BY lock, id LIMIT 1 INTO _job;
    END IF;
    RETURN _job;
END;
$$;

CREATE FUNCTION fifo_background_task(_queue text, _id text) RETURNS jsonb LANGUAGE sql AS $$
    SELECT fifo_background_pictures(_queue, ARRAY[task], 1000000000) -> 0 FROM fifo_background_tasks AS task
        WHERE id = _id AND queue = _queue;
$$;

-- The newest tasks that match. _search: a part of the function's name, of the key or, of an id, its beginning.
-- With a lane, a function or _search, those that match of the newest 10,000.
CREATE FUNCTION fifo_background_list(
    _queue text, _states text[], _lane text, _function text, _search text, _limit int, _before bigint
) RETURNS jsonb LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    _most int := CASE WHEN coalesce(_lane, _function, _search) IS NULL THEN _limit ELSE 10000 END;
    _found jsonb;
BEGIN
    _before := coalesce(_before, 9223372036854775807);
    IF _lane IS NOT NULL THEN
        PERFORM fifo_background_number_ends(_queue, true); -- ended tasks of a lane are found by their numbers
    END IF;
    WITH looked AS (
        SELECT newest.* FROM unnest(coalesce(_states, ARRAY[
            'queued', 'running', 'succeeded', 'failed', 'skipped', 'cancelled', 'superseded', 'dropped'
        ])) AS wanted, LATERAL (
            SELECT * FROM fifo_background_tasks WHERE _lane IS NULL
            AND queue = _queue AND state = wanted AND number < _before ORDER BY number DESC LIMIT _most
        ) AS newest
        UNION ALL
        (SELECT * FROM fifo_background_tasks WHERE _lane IS NOT NULL
            AND queue = _queue AND lane BETWEEN _lane AND _lane AND state IN ('queued', 'running')
            AND number < _before ORDER BY lane DESC, job_id DESC, place DESC LIMIT _most)
        UNION ALL
        (SELECT * FROM fifo_background_tasks WHERE _lane IS NOT NULL
            AND queue = _queue AND lane BETWEEN _lane AND _lane AND ended_number IS NOT NULL
            AND number < _before ORDER BY lane DESC, ended_number DESC LIMIT _most)
    )
    SELECT fifo_background_pictures(_queue, array_agg(task ORDER BY (task).number DESC), 10000) FROM (
        SELECT one::fifo_background_tasks AS task FROM looked AS one
        WHERE (_states IS NULL OR one.state = ANY(_states))
            AND (_function IS NULL OR split_part(one.function, ':', 2) = _function)
            AND (_search IS NULL OR position(lower(_search) IN lower(split_part(one.function, ':', 2))) > 0
                OR position(lower(_search) IN lower(one.lane)) > 0
                OR one.number::text = _search
                OR (length(_search) > 5 AND starts_with(one.id, _search)))
        ORDER BY one.number DESC LIMIT _limit
    ) AS those INTO _found;
    RETURN _found;
END;
$$;

-- What has ended behind an end, and the number of the last one. Null if some of it is forgotten, or if it is
-- more than a client is to be told one by one.
CREATE FUNCTION fifo_background_ended(_queue text, _after bigint, _limit int) RETURNS jsonb
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    _row fifo_background_queues;
    _found jsonb;
BEGIN
    SELECT * FROM fifo_background_queues WHERE queue = _queue INTO _row;
    IF _after < _row.forgotten OR _after > _row.ended OR _row.ended - _after > 1000 THEN
        RETURN NULL;
    END IF;
    SELECT jsonb_build_object(
            'tasks', coalesce(jsonb_agg(fifo_background_picture(task, 0, NULL, NULL) ORDER BY (task).ended_number), '[]'),
            'last', coalesce(max((task).ended_number), _row.ended))
        FROM (
            SELECT one::fifo_background_tasks AS task FROM fifo_background_tasks AS one
            WHERE queue = _queue AND ended_number > _after ORDER BY ended_number LIMIT _limit
        ) AS those INTO _found;
    RETURN _found;
END;
$$;

-- One lane: what runs, waits, keeps it, and has ended last. Up to 10,000 that wait are counted; runs are looked
-- for in the first 200 of them; of the ended ones, the last 100 count.
CREATE FUNCTION fifo_background_lane(_queue text, _lane text) RETURNS jsonb
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    _now timestamptz := clock_timestamp();
    _lock text := _queue || '/' || _lane;
    _failed fifo_background_tasks;
    _running fifo_background_tasks;
    _next fifo_background_tasks;
    _head fifo_background_tasks;
    _paused timestamptz := fifo_background_paused_at(_queue, _lock);
    _waiting int;
    _alone int;
    _runs jsonb;
    _ended record;
BEGIN
    SELECT task.* FROM procrastinate_jobs AS job JOIN fifo_background_tasks AS task ON task.job_id = job.id
        WHERE job.lock = _lock AND job.status = 'todo' AND job.queue_name = fifo_background_stopped(_queue)
            AND task.state = 'failed'
        ORDER BY task.place DESC LIMIT 1 INTO _failed;
    SELECT task.* FROM procrastinate_jobs AS job JOIN fifo_background_tasks AS task ON task.job_id = job.id
        WHERE job.lock = _lock AND job.status = 'doing' AND task.state = 'running' LIMIT 1 INTO _running;
    SELECT * FROM fifo_background_tasks
        WHERE queue = _queue AND lane BETWEEN _lane AND _lane AND state IN ('queued', 'running')
            AND state = 'queued'
        ORDER BY lane, job_id, place LIMIT 1 INTO _next;
    _head := CASE WHEN _failed.id IS NULL THEN _next ELSE _failed END;
    SELECT count(*) FROM (
        SELECT FROM fifo_background_tasks
        WHERE queue = _queue AND lane BETWEEN _lane AND _lane AND state IN ('queued', 'running')
        ORDER BY lane, job_id LIMIT 10000
    ) AS those INTO _waiting;
    IF _running.id IS NOT NULL THEN
        _waiting := greatest(_waiting - 1, 0);
    END IF;
    _alone := CASE WHEN _running.id IS NULL AND _failed.id IS NULL THEN 1 ELSE 0 END; -- the head, shown alone
    WITH behind AS (
        SELECT split_part(function, ':', 2) AS name, row_number() OVER () - _alone AS place FROM (
            SELECT function FROM fifo_background_tasks
            WHERE queue = _queue AND lane BETWEEN _lane AND _lane AND state IN ('queued', 'running')
                AND state = 'queued'
            ORDER BY lane, job_id, place LIMIT 200
        ) AS those
    ), islands AS (
        SELECT name, min(place) AS first, max(place) AS last FROM (
            SELECT name, place, place - row_number() OVER (PARTITION BY name ORDER BY place) AS island
            FROM behind WHERE place > 0
        ) AS those GROUP BY name, island ORDER BY first LIMIT 3
    ) SELECT jsonb_agg(jsonb_build_array(first, last, name) ORDER BY first) FROM islands INTO _runs;
    SELECT count(*) AS count, count(*) FILTER (WHERE state = 'failed') AS failed,
            jsonb_agg(jsonb_build_array(state, ran) ORDER BY ended_number) FILTER (WHERE place <= 21) AS recent,
            percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY waited) AS waited,
            percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY ran) AS ran
        FROM (
            SELECT state, ended_number, row_number() OVER () AS place,
                extract(epoch FROM started_at - added_at) AS waited,
                extract(epoch FROM ended_at - started_at) AS ran
            FROM fifo_background_tasks
            WHERE queue = _queue AND lane BETWEEN _lane AND _lane AND ended_number IS NOT NULL
            ORDER BY lane DESC, ended_number DESC LIMIT 100
        ) AS those INTO _ended;
    RETURN jsonb_build_object(
        'lane', _lane,
        'state', CASE WHEN _failed.id IS NOT NULL THEN 'stopped' WHEN _paused IS NOT NULL THEN 'paused'
            WHEN _running.id IS NOT NULL OR _waiting > 0 THEN 'busy' ELSE 'idle' END,
        'running', CASE WHEN _running.id IS NOT NULL THEN fifo_background_picture(_running, 0, NULL, NULL) END,
        'head', CASE
            WHEN _failed.id IS NOT NULL THEN fifo_background_picture(_head, 0, NULL, NULL)
            WHEN _head.id IS NOT NULL THEN fifo_background_picture(
                _head, 0, (_running.id IS NOT NULL)::int, fifo_background_blocker(_queue, _lane)
            )
        END,
        'head_for', extract(epoch FROM _now - _head.added_at), 'paused_for', extract(epoch FROM _now - _paused),
        'waiting', _waiting, 'next', coalesce(_runs, '[]'),
        'more', greatest(_waiting - _alone - coalesce((_runs -> -1 ->> 1)::int, 0), 0),
        'recent', coalesce(_ended.recent, '[]'), 'ended', _ended.count, 'failed', _ended.failed,
        'waited', _ended.waited, 'ran', _ended.ran
    );
END;
$$;

-- The lanes in which something waits, runs, failed or is paused, up to 10,000 of them: stopped ones first, then
-- paused ones, then those whose first job is the oldest. Behind these the idle lanes of the last 1,000 ends.
CREATE FUNCTION fifo_background_lanes(_queue text, _limit int) RETURNS jsonb
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
DECLARE
    _oldest text;
    _found jsonb;
BEGIN
    PERFORM fifo_background_number_ends(_queue, true);
    SELECT lane FROM fifo_background_tasks WHERE queue = _queue AND state = 'queued'
        ORDER BY number LIMIT 1 INTO _oldest;
    WITH RECURSIVE one AS ( -- one look into the index for each lane, whatever waits in it
        (SELECT lane, job_id, 1 AS place FROM fifo_background_tasks
            WHERE queue = _queue AND state IN ('queued', 'running') ORDER BY lane, job_id LIMIT 1)
        UNION ALL
        SELECT following.lane, following.job_id, one.place + 1 FROM one, LATERAL (
            SELECT lane, job_id FROM fifo_background_tasks
            WHERE queue = _queue AND state IN ('queued', 'running') AND lane > one.lane
            ORDER BY lane, job_id LIMIT 1
        ) AS following WHERE one.place < 10000
    ), standing AS (
        SELECT substr(lock, length(_queue) + 2) AS lane, min(id) AS job_id,
            min(CASE WHEN queue_name = fifo_background_stopped(_queue) THEN 0 ELSE 2 END) AS urgency
        FROM procrastinate_jobs WHERE status = 'todo'
            AND queue_name IN (fifo_background_stopped(_queue), fifo_background_paused(_queue))
        GROUP BY lock
    ), present AS (
        SELECT lane, coalesce(urgency, 3) AS urgency, coalesce(one.job_id, standing.job_id) AS place
        FROM one FULL JOIN standing USING (lane)
    ), idle AS (
        SELECT lane, 4 AS urgency, -max(ended_number) AS place FROM (
            SELECT lane, ended_number FROM fifo_background_tasks
            WHERE queue = _queue AND ended_number IS NOT NULL ORDER BY ended_number DESC LIMIT 1000
        ) AS those WHERE lane NOT IN (SELECT lane FROM present) GROUP BY lane
    ), every AS (
        SELECT * FROM present UNION ALL SELECT * FROM idle
    ) SELECT jsonb_build_object('total', (SELECT count(*) FROM every), 'lanes', coalesce((
        SELECT jsonb_agg(fifo_background_lane(_queue, lane) ORDER BY urgency, place)
            FROM (SELECT * FROM every ORDER BY urgency, place LIMIT _limit) AS those
    ), '[]'), 'oldest', CASE WHEN _oldest IS NOT NULL THEN fifo_background_lane(_queue, _oldest) END) INTO _found;
    RETURN _found;
END;
$$;

-- The id of the task that is next in a lane; of a stopped lane, of the failed one.
CREATE FUNCTION fifo_background_peek(_queue text, _lock text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    _lane text := substr(_lock, length(_queue) + 2);
    _job procrastinate_jobs := fifo_background_head_job(_queue, _lock);
    _id text;
BEGIN
    IF _job.queue_name = fifo_background_stopped(_queue) THEN
        SELECT id FROM fifo_background_tasks WHERE job_id = _job.id AND state = 'failed'
            ORDER BY place DESC LIMIT 1 INTO _id;
    ELSE
        SELECT id FROM fifo_background_tasks
            WHERE queue = _queue AND lane BETWEEN _lane AND _lane AND state IN ('queued', 'running')
                AND state = 'queued'
            ORDER BY lane, job_id, place LIMIT 1 INTO _id;
    END IF;
    RETURN _id;
END;
$$;

-- How many tasks wait (up to 100,000), and for how many seconds the first of them.
CREATE FUNCTION fifo_background_backlog(_queue text) RETURNS jsonb
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    RETURN jsonb_build_array((
        SELECT count(*) FROM (
            SELECT FROM fifo_background_tasks WHERE queue = _queue AND state = 'queued' LIMIT 100000
        ) AS those
    ), (
        SELECT extract(epoch FROM clock_timestamp() - added_at) FROM fifo_background_tasks
        WHERE queue = _queue AND state = 'queued' ORDER BY number LIMIT 1
    ));
END;
$$;

-- How many tasks run and wait (up to 100,000), and have ended in which way since the tables were made; and the
-- workers that are alive.
CREATE FUNCTION fifo_background_statistics(_queue text) RETURNS jsonb
LANGUAGE plpgsql SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    _row fifo_background_queues := fifo_background_number_ends(_queue, true);
    _found jsonb;
BEGIN
    SELECT jsonb_build_object(
        'states', _row.states || coalesce((
            SELECT jsonb_object_agg(open.state, open.count) FROM (
                SELECT one.state, (SELECT count(*) FROM (
                    SELECT FROM fifo_background_tasks WHERE queue = _queue AND state = one.state LIMIT 100000
                ) AS those) AS count
                FROM unnest(ARRAY['queued', 'running']) AS one (state)
            ) AS open WHERE open.count > 0
        ), '{}'),
        'workers', coalesce((
            SELECT jsonb_agg(jsonb_build_object(
                'id', ours.id, 'host', ours.host, 'pid', ours.pid, 'concurrency', ours.concurrency,
                'heard', extract(epoch FROM clock_timestamp() - worker.last_heartbeat),
                'running', (SELECT count(*) FROM procrastinate_jobs WHERE worker_id = ours.id AND status = 'doing')
            ) ORDER BY ours.id)
            FROM fifo_background_workers AS ours JOIN procrastinate_workers AS worker ON worker.id = ours.id
            WHERE ours.queue = _queue
        ), '[]')
    ) INTO _found;
    RETURN _found;
END;
$$;

-- Forgets jobs all of whose tasks have ended so long ago; how many, at most `_most`.
CREATE FUNCTION fifo_background_prune(_queue text, _seconds double precision, _most int) RETURNS int
LANGUAGE plpgsql AS $$
DECLARE
    _jobs bigint[];
    _last bigint;
BEGIN
    PERFORM fifo_background_number_ends(_queue, true);
    PERFORM FROM fifo_background_queues WHERE queue = _queue FOR UPDATE;
    SELECT array_agg(job_id) FROM (
        SELECT DISTINCT task.job_id FROM fifo_background_tasks AS task
            JOIN procrastinate_jobs AS job ON job.id = task.job_id AND job.status NOT IN ('todo', 'doing')
            WHERE task.queue = _queue AND task.ended_at < clock_timestamp() - make_interval(secs => _seconds)
                AND NOT EXISTS (SELECT FROM fifo_background_tasks AS other WHERE other.job_id = task.job_id
                    AND other.ended_at >= clock_timestamp() - make_interval(secs => _seconds))
            LIMIT _most
    ) AS old INTO _jobs;
    SELECT max(ended_number) FROM fifo_background_tasks WHERE job_id = ANY(_jobs) INTO _last;
    DELETE FROM procrastinate_jobs WHERE id = ANY(_jobs);
    UPDATE fifo_background_queues SET forgotten = greatest(forgotten, _last) WHERE queue = _queue;
    RETURN coalesce(cardinality(_jobs), 0);
END;
$$;
