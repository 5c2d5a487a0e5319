/** A NestJS application that searches its help pages by meaning. */

import "reflect-metadata";
import {
  Controller,
  Get,
  Inject,
  Injectable,
  Module,
  type OnModuleInit,
  Query,
} from "@nestjs/common";
import { NestFactory } from "@nestjs/core";
import { HelpEmbeddingService } from "embedserve-client/compat";

const PAGES = [
  "Reset your password on the sign-in page.",
  "Invoices are sent on the first day of the month.",
  "Export your data as CSV in the settings.",
];

@Injectable()
class Pages implements OnModuleInit {
  private vectors: number[][] = [];

  constructor(@Inject(HelpEmbeddingService) private readonly embeddings: HelpEmbeddingService) {}

  async onModuleInit(): Promise<void> {
    this.vectors = await this.embeddings.encodeBatch(PAGES);
  }

  /** Returns the page that is most similar to a query. */
  async find(query: string): Promise<{ page: string; score: number }> {
    const vector = await this.embeddings.encodeQuery(query);
    const scores = this.vectors.map((row) => row.reduce((sum, x, i) => sum + x * vector[i]!, 0));
    const score = Math.max(...scores);
    return { page: PAGES[scores.indexOf(score)]!, score };
  }
}

@Controller()
class SearchController {
  constructor(@Inject(Pages) private readonly pages: Pages) {}

  @Get("search")
  search(@Query("q") query: string): Promise<{ page: string; score: number }> {
    return this.pages.find(query);
  }
}

@Module({
  controllers: [SearchController],
  providers: [HelpEmbeddingService, Pages], // the worker starts and stops with the application
})
class AppModule {}

const app = await NestFactory.create(AppModule, { logger: ["warn", "error"] });
app.enableShutdownHooks();
await app.listen(process.env["PORT"] ?? 3000, "127.0.0.1");
console.log(await app.getUrl());
