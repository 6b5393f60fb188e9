"""The transparency log: entries appended with the business transaction, sequenced, published, cosigned, exported."""
