// OpenAI's own client asks a server, and prints what it understood of the answers.
//
//     node ask.mjs BASE_URL API_KEY MODEL '["one text", "another"]'

import OpenAI from "openai";

const [baseURL, apiKey, model, texts] = process.argv.slice(2);
const input = JSON.parse(texts);
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });

const refusal = async (options, key = apiKey) => {
  try {
    await new OpenAI({ baseURL, apiKey: key, maxRetries: 0 }).embeddings.create(options);
  } catch (error) {
    return [error.constructor.name, error.code, error.param];
  }
  return null;
};

const models = [];
for await (const one of client.models.list()) models.push(one.id);
const encoded = await client.embeddings.create({ model, input }); // base64 on the wire
const floats = await client.embeddings.create({ model, input, encoding_format: "float" });

console.log(
  JSON.stringify({
    models,
    vectors: encoded.data.map((one) => one.embedding),
    floats: floats.data.map((one) => one.embedding),
    tokens: encoded.usage.prompt_tokens,
    refused: [
      await refusal({ model: "nobody", input }),
      await refusal({ model, input, dimensions: 385 }),
      await refusal({ model, input }, "wrong"),
    ],
  }),
);
