//! Which indexes depend on how texts sort: asked of production before it is connected, and of a branch that is to be mended.

/// For each collation that sorts something in an index of the current database: `oid`, `name` (as SQL has it), `provider` (`c`, `i` or
/// `b`), `locale`, `version` (with which the indexes were made, as recorded), `actual` (that of the server that answers), and `indexes`
/// (a JSON list of names that can be used in SQL). One without versions, such as `C`, sorts everywhere alike and is not among them.
///
/// To be run with an empty `search_path`, so that names have their schemas. Operator classes that compare bytes, and hashes of
/// deterministic collations, depend on no order. What an expression or predicate calls inside is not recorded where it uses the
/// database's own collation, so indexes with one count as depending on that.
pub const COLLATIONS_IN_USE: &str = "
    with used (sorter, index) as (
        select k.sorter, i.indexrelid
        from pg_catalog.pg_index i
            join pg_catalog.pg_class c on c.oid = i.indexrelid
            join pg_catalog.pg_am am on am.oid = c.relam
            cross join lateral unnest(i.indcollation::pg_catalog.oid[], i.indclass::pg_catalog.oid[]) k (sorter, opclass)
            join pg_catalog.pg_opclass oc on oc.oid = k.opclass
            join pg_catalog.pg_opfamily f on f.oid = oc.opcfamily
            join pg_catalog.pg_collation l on l.oid = k.sorter
        where f.opfname not in ('text_pattern_ops', 'bpchar_pattern_ops')
            and not (am.amname = 'hash' and l.collisdeterministic)
        union
        select d.refobjid, d.objid from pg_catalog.pg_depend d
        where d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass
            and d.refclassid = 'pg_catalog.pg_collation'::pg_catalog.regclass
        union
        select 100, i.indexrelid from pg_catalog.pg_index i where i.indexprs is not null or i.indpred is not null
    ), grouped (sorter, indexes) as (
        select u.sorter, pg_catalog.json_agg(c.oid::pg_catalog.regclass::text order by c.oid)
        from used u join pg_catalog.pg_class c on c.oid = u.index and c.relkind = 'i' and c.relpersistence <> 't'
        where c.oid >= 16384
        group by u.sorter
    ), collations (oid, name, provider, locale, version, actual, indexes) as (
        select l.oid, pg_catalog.format('%I.%I', n.nspname, l.collname), l.collprovider::text,
            coalesce(pg_catalog.to_jsonb(l) ->> 'colllocale', pg_catalog.to_jsonb(l) ->> 'colliculocale', l.collcollate::text),
            l.collversion, pg_catalog.pg_collation_actual_version(l.oid), g.indexes
        from grouped g join pg_catalog.pg_collation l on l.oid = g.sorter
            join pg_catalog.pg_namespace n on n.oid = l.collnamespace
        where l.collprovider <> 'd'
        union all
        select 100, 'the default', d.datlocprovider::text,
            coalesce(pg_catalog.to_jsonb(d) ->> 'datlocale', pg_catalog.to_jsonb(d) ->> 'daticulocale', d.datcollate::text),
            d.datcollversion, pg_catalog.pg_database_collation_actual_version(d.oid), g.indexes
        from grouped g, pg_catalog.pg_database d
        where g.sorter = 100 and d.datname = pg_catalog.current_database()
    )
    select oid::text, name, provider, locale, version, actual, indexes::text
    from collations where version is not null or actual is not null order by name";
