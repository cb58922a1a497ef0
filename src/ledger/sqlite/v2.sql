-- A quote is found by its number too; and whatever writes here, no number is ever two quotes.
CREATE UNIQUE INDEX quote_number ON quote (scope, sequence);
